#!/bin/bash
# @COUNT@ of notebook @NOTEBOOK@; what each one runs is in @FOLDER@/tasks/.
# Written by geo slurm submit.
@DIRECTIVES@

# SLURM signals this shell @SIGNAL_S@ s before the time limit, and every process on preemption. The
# task saves either way; it is put back into the queue unless SLURM does that itself.
told= task=
trap 'told=1; kill -USR1 $task 2>/dev/null' USR1
trap 'told=1' TERM

cd @PROJECT@
@SETUP@@PYTHON@ -m geo_utils slurm task @FOLDER@ "$SLURM_ARRAY_TASK_ID" &
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
