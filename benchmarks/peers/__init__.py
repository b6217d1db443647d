"""Other packages on the same problems, in an environment of their own (`setup.sh`)."""
