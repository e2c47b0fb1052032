"""lm-eval's command line, which knows `--model crystal --model_args checkpoint=DIR` here and judges code in our sandbox.

The surprise: lm-eval looks for no plug-ins, so somebody has to import ours before it reads its arguments.
"""

from lm_eval.__main__ import cli_evaluate

from benchmarks.code.metric import offline_code_eval
from benchmarks.language import model  # noqa: F401  registers "crystal"

if __name__ == "__main__":
    with offline_code_eval():
        cli_evaluate()
