"""What each command of `dynadapt` is given, does and answers.

Jobs are imported when their command runs: `dynadapt --help` starts no JAX.
"""

from dynadapt.commands import benchmarks, release, runs, sweeps, weights

COMMANDS = {
    **runs.COMMANDS,
    **sweeps.COMMANDS,
    **weights.COMMANDS,
    **release.COMMANDS,
    **benchmarks.COMMANDS,
}
