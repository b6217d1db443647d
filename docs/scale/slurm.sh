#!/usr/bin/env bash
# A study on several whole nodes of a Slurm cluster: sbatch docs/scale/slurm.sh
# What the parts mean: docs/scale.md.
#SBATCH --job-name=batchlab
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# On a file system that all nodes see: a virtual environment with batchlab[ray], the data, the study.
SHARED="${SHARED:-$SLURM_SUBMIT_DIR}"
source "$SHARED/venv/bin/activate"
export BATCHLAB_DATA_DIR="${BATCHLAB_DATA_DIR:-$SHARED/data}"
export RAY_USAGE_STATS_ENABLED=0
# Others who reach these nodes must not: Ray's token is in the home directory, which all nodes see.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null

# The script runs on the first node, which is the head; `ray start` returns when it is up.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
port=6379
ray start --head --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" --include-dashboard=false

# The other nodes join as they come; jobs wait for them.
if ((SLURM_NNODES > 1)); then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        bash -c "ray start --address=$head:$port --num-cpus=\"\$SLURM_CPUS_ON_NODE\" --block" &
fi

# In the background, for a shell hears no signal while a command in the foreground runs.
batchlab reproduce --workload mnist --backend ray --address "$head:$port" --threads 1 \
    --workers $((SLURM_NNODES * SLURM_CPUS_ON_NODE)) --store "$SHARED/study/store" \
    --out "$SHARED/study" &
study=$!

# Three minutes before the time is up: what is under way saves itself, then status 130.
trap 'kill -TERM "$study"' TERM
status=0
wait "$study" || status=$?
if ((status == 143)); then # the wait was cut short by the signal
    status=0
    wait "$study" || status=$?
fi
if ((status == 130)); then
    scontrol requeue "$SLURM_JOB_ID" # the same script goes on from there
fi
exit "$status" # Slurm ends Ray with the job
