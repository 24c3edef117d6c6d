#!/bin/bash
# {{ count }} run{{ "s" if count > 1 }} of notebook {{ notebook }}; what each one runs is in {{ folder }}/tasks/.
# Written by geo slurm submit.
#SBATCH --job-name={{ notebook }}
#SBATCH --array=0-{{ count - 1 }}{{ "%%%d" % settings.concurrency if settings.concurrency }}
#SBATCH --output={{ folder | replace("%", "%%") }}/logs/%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ settings.signal_s }}
#SBATCH --time={{ settings.time }}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={{ settings.cpus }}
{{ "#SBATCH --gres=gpu:%d\n" % gpus if gpus -}}
{{ "#SBATCH --partition=%s\n" % settings.partition if settings.partition -}}
{{ "#SBATCH --account=%s\n" % settings.account if settings.account -}}
{% for line in settings.sbatch -%}
#SBATCH {{ line }}
{% endfor %}
# SLURM signals this shell {{ settings.signal_s }} s before the time limit, and every process on preemption. The
# task saves either way; it is put back into the queue unless SLURM does that itself.
told= task=
trap 'told=1; kill -USR1 $task 2>/dev/null' USR1
trap 'told=1' TERM

cd {{ project }}
{% for line in settings.setup -%}
{{ line }}
{% endfor -%}
{{ python }} -m geo_utils slurm task {{ folder }} "$SLURM_ARRAY_TASK_ID" &
task=$!
[ -z "$told" ] || kill -USR1 "$task"
wait "$task"; code=$?
while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
wait "$task"; code=$?

# 0 finished, 1 and 2 failed; above 128 a signal ended it.
if [ -n "$told" ] && [ "$code" -gt 128 ]; then
  # Not by SLURM_JOB_ID: one task's is the array's own, which means every task.
  self="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  state=$(squeue -h -j "$self" -o %T)
  [ "$state" = RUNNING ] && scontrol requeue "$self"
fi
exit "$code"
