#!/bin/bash
# two_hosts.sh: two network namespaces play two hosts that know each other over TCP only. Trains the quickstart's bridge on one rank
# of each, cuts one off in the middle of training: both ranks end with 69 in time; then resumes. Needs root, ip, mpirun, unshare.
# The agent that mpirun would reach another host with, ssh, is this file itself: `two_hosts.sh HOST COMMAND..`.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
self=$here/tests/dist/two_hosts.sh
if [ $# -gt 0 ]; then # as agent
  while [ "${1#-}" != "$1" ]; do shift; done
  host=$1; shift
  case $host in 10.77.0.1) n=cab1 ;; 10.77.0.2) n=cab2 ;; *) echo "unknown host $host"; exit 1 ;; esac
  exec ip netns exec $n unshare -u sh -c "hostname $n; cd '$here'; $*"
fi
for tool in ip mpirun unshare; do command -v $tool >/dev/null || { echo "skipped: no $tool here"; exit 77; }; done
ip netns add cab1 2>/dev/null || { echo "skipped: no right to make a network namespace"; exit 77; }
out=$(mktemp -d)
trap 'ip netns del cab1; ip netns del cab2; rm -rf $out' EXIT
ip netns add cab2
ip link add cabv1 netns cab1 type veth peer name cabv2 netns cab2
for i in 1 2; do
  ip -n cab$i addr add 10.77.0.$i/24 dev cabv$i
  ip -n cab$i link set cabv$i up
  ip -n cab$i link set lo up
done
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OUT=$out
printf '10.77.0.1 slots=1\n10.77.0.2 slots=1\n' >$out/hosts
cat >$out/rank.sh <<END # keeps each rank's exit code and the time it ended
#!/bin/bash
build/cab run recipes/quickstart.lua "\$@" >$out/rank\$OMPI_COMM_WORLD_RANK.log 2>&1
echo "\$? \$(date +%s%N)" >$out/rank\$OMPI_COMM_WORLD_RANK.end
END
chmod +x $out/rank.sh
launch() {
  ip netns exec cab1 unshare -u sh -c "hostname cab1; cd '$here'; exec timeout ${1} mpirun -np 2 --hostfile $out/hosts --map-by node \
    --mca plm_rsh_agent $self --mca plm_rsh_no_tree_spawn 1 --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
    --mca oob_tcp_if_include 10.77.0.0/24 -x OMP_NUM_THREADS $out/rank.sh ${2}" >$out/mpirun.log 2>&1
}
list="device=cpu eval.every=0 checkpoint.every=5 dist.timeout=5 --quiet --out $out/run"
launch 150 "$list" &
job=$!
for i in $(seq 600); do ls $out/run/vanilla/checkpoints/step-10.json >/dev/null 2>&1 && break; sleep 0.1; done
[ -e $out/run/vanilla/checkpoints ] || { echo "failed: no training began"; cat $out/mpirun.log $out/rank*.log | tail -20; kill $job; exit 1; }
ip -n cab2 link set cabv2 down
cut=$(date +%s%N)
for i in $(seq 150); do [ -e $out/rank0.end ] && [ -e $out/rank1.end ] && break; sleep 0.1; done
failed=0
for r in 0 1; do
  read -r code end <$out/rank$r.end 2>/dev/null || { code=none; end=$cut; }
  echo "rank $r: exit $code, $(((end - cut) / 1000000)) ms after the cut: $(grep -h 'error\[' $out/rank$r.log | tail -1)"
  [ "$code" = 69 ] && [ $(((end - cut) / 1000000)) -lt 10000 ] || failed=1
done
kill $job 2>/dev/null; wait $job 2>/dev/null
ip -n cab2 link set cabv2 up
rm -f $out/rank*.end
launch 60 "$list --resume" &
job=$!
for i in $(seq 300); do grep -q "resumed at" $out/run/vanilla/log.txt && break; sleep 0.1; done
grep "resumed at" $out/run/vanilla/log.txt || { echo "failed: not resumed"; failed=1; tail -5 $out/mpirun.log $out/rank*.log; }
kill $job; wait $job 2>/dev/null
[ $failed = 0 ] && echo "two hosts: passed" || { echo "two hosts: failed"; exit 1; }
