"""harness_process: one call of lm-eval's, in its own environment. Has settings as JSON, and writes all answers.

.venv-eval/bin/python harness_process.py SETTINGS ANSWERS
"""

import json
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
# Of lm-eval's own tasks none is asked for, and reading what there is takes it ten seconds.
manager = TaskManager(include_path=settings.pop("tasks_in"), include_defaults=False, metadata=settings.pop("metadata"))
found = simple_evaluate(task_manager=manager, log_samples=True, **settings)
with Path(sys.argv[2]).open("w", encoding="utf-8") as file:
    for task, samples in found["samples"].items():
        for sample in samples:
            kept = {name: sample[name] for name in ("doc", "resps", "acc", "no_number")}
            file.write(json.dumps({"task": task, **kept}, ensure_ascii=False) + "\n")
