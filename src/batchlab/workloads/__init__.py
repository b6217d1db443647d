import torch
from batchlab.spec import *
from batchlab.workloads.base import Data
class D:
    protocol=Protocol(workload="digits",train_samples=1437,model=Model(hidden=(256,256)),tiny=2,small=8,middle=32,large=128,learning_rate=.01,high_learning_rate=.16,epochs=30,early_epochs=2,trial_batch_sizes=(1,2,3,4,5,6,7,8,16,32,64,128,256,512,1024),trial_samples=1024,draws=25,orders=2,weight_decays=(.01,.1))
    def load(self,data_dir):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        d=load_digits(); a,b,c,e=train_test_split(d.data,d.target,test_size=360,random_state=0,stratify=d.target)
        m,s=a.mean(),a.std()
        t=lambda z: torch.tensor((z-m)/s,dtype=torch.float32)
        return Data(t(a),torch.tensor(c),t(b),torch.tensor(e),10)
def workload(name): return D()
