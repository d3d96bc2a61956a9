#!/bin/bash
# Train on a part of the machines of a Slurm job, and render on the others.
#
# Needs:    4 machines of 8 GPUs: 2 train, 2 render. This clone, the Python environment, the models (HF_HOME) and
#           output_dir on a file system that all of them share. `pip install -e ".[serve]"`, Ray 2.52 or newer.
#           A network that you trust: the traffic between the machines is not encrypted.
# Launch:   sbatch recipes/slurm.sh recipes/qwen2vl_7b_sd3.yaml
#           (from the top of the clone, with the Python environment activated)
# Override: RENDER_NODES=4 sbatch --nodes 6 --time 48:00:00 recipes/slurm.sh recipes/qwen2vl_7b_sd3.yaml --seed 1
#           (flags after the YAML reach training alone; settings of the generator and of image rewards must be in the
#           YAML, which the service reads too)
#
#SBATCH --job-name=brushup
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0                # all of it
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600    # ten minutes before the time is up; more than a step and a checkpoint take
#SBATCH --requeue              # after a machine failed, too
#SBATCH --open-mode=append
#SBATCH --output=brushup-%j.log

set -euo pipefail
config=${1:?usage: sbatch recipes/slurm.sh CONFIG.yaml [flags of recipes/grpo.py]}
render_nodes=${RENDER_NODES:-2}
policy_nodes=$((SLURM_NNODES - render_nodes))
gpus=$SLURM_GPUS_ON_NODE

# The first machines train, the last ones render.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
policy=${nodes[0]}
render=$(getent ahostsv4 "${nodes[policy_nodes]}" | awk 'NR == 1 { print $1 }')
echo "policy: ${nodes[*]:0:policy_nodes}; render: ${nodes[*]:policy_nodes}, http://$render:8100"

BRUSHUP_TOKEN=$(openssl rand -hex 32)
RAY_AUTH_TOKEN=$(openssl rand -hex 32)  # without it, anyone who reaches Ray's ports can run code on these machines
export BRUSHUP_TOKEN RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300  # seconds for all render machines to come up
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540  # seconds that SIGTERM leaves to a rank; less than --signal above
export no_proxy="$render,${no_proxy:-}"

# The service (step 0 of the job): Ray on the render machines, and on the first of them recipes/serve.py.
log=brushup-$SLURM_JOB_ID-render.log
srun --relative="$policy_nodes" --nodes="$render_nodes" --ntasks="$render_nodes" --cpu-bind=none \
    --output="$log" --open-mode=append \
    ray symmetric-run --address "$render:6379" --min-nodes "$render_nodes" -- \
    python recipes/serve.py --config "$config" --ray_address "$render:6379" --host "$render" --port 8100 \
    --num_replicas $((render_nodes * gpus)) &
service=$!
until curl --silent --fail --output /dev/null "http://$render:8100/health"; do
    kill -0 "$service" 2> /dev/null || { echo "the render service ended; why is in $log" >&2; exit 1; }
    sleep 5
done

# When the time is nearly up: a checkpoint after the running step, and back into the queue. The service goes on until
# then: only the training gets the signal, straight from Slurm (srun would answer it with SIGKILL).
stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID.1" || true' TERM

# The training (step 1). It starts anew if output_dir has no checkpoint yet.
# shellcheck disable=SC2016  # each machine puts in its own SLURM_PROCID
srun --relative=0 --nodes="$policy_nodes" --ntasks="$policy_nodes" --cpu-bind=none \
    bash -c 'exec accelerate launch --machine_rank "$SLURM_PROCID" "$@"' - \
    --config_file accelerate_configs/multi_node.yaml \
    --num_machines "$policy_nodes" --num_processes $((policy_nodes * gpus)) --main_process_ip "$policy" \
    recipes/grpo.py --config "$config" --worker "http://$render:8100" --resume_from_checkpoint true "${@:2}" &
training=$!
code=0
wait "$training" || code=$?
if [[ $stopped ]]; then  # the signal ended the waiting, not the training
    code=0
    wait "$training" || code=$?
    ((code == 0)) || scontrol requeue "$SLURM_JOB_ID"  # 0: that step was the last one
fi
exit "$code"  # Slurm ends the service with the job
