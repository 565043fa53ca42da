python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=$PWD:/tmp/site TOKENIZERS_PARALLELISM=false
for b in 1024 2048 4096; do
  sed -i "s/^BLOCK = .*/BLOCK = $b/" fedmerge/kernels/gpu_table.py
  echo block $b; timeout 50 python3 benchmarks/gpu.py --only kernels --repeats 20 2>&1 | tail -5
done
timeout 75 python3 benchmarks/gpu.py --only host --repeats 2 2>&1 | tail -4
python3 - <<'P'
import cProfile,pstats,torch,time
import sys; sys.path.insert(0,'benchmarks')
import gpu as G
b=G.Bench(G.Size(repeats=3),'cuda'); b.bandwidth=3e12
import numpy as np
from fedmerge.kernels.gpu import merge_tensors
from fedmerge.kernels.plan import fused
from fedmerge.rules import parse_rule
host=[b.delta(16,0)]*8
names=list(host[0])
vals=[[host[0][n].flatten().cuda() for _ in range(8)] for n in names]
outs=[torch.empty_like(v[0]) for v in vals]
w=torch.ones(8,dtype=torch.float64)
for r in ("fedavg()","ties(density=0.2)"):
    p=fused(parse_rule(r))
    f=lambda: (merge_tensors(p,vals,w,None,outs),torch.cuda.synchronize())
    f();f()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU,torch.profiler.ProfilerActivity.CUDA]) as prof: f()
    print(prof.key_averages().table(sort_by="cuda_time_total",row_limit=10,max_name_column_width=40)[:3500])
    c=cProfile.Profile(); c.enable(); f(); c.disable(); pstats.Stats(c).sort_stats("tottime").print_stats(8)
P
