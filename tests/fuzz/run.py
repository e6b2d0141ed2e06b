"""Fuzzing in a process of its own, whose death is a finding.

    python tests/fuzz/run.py core --examples 500          with hypothesis, as the tests do
    python tests/fuzz/run.py files --guided 300           for 300 seconds with atheris (pip install atheris)

``--guided`` follows the coverage of the Python code, writes what crashed to crash-* in the current folder and takes the
path of such a file in ``--again`` to repeat it.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import pathlib
import resource
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parent))

#: So that a file that promises gigapixels ends in a refusal and not in the machine's last page of memory.
MEMORY = 12 << 30


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("core", "files"))
    parser.add_argument("--examples", type=int, default=200, help="of hypothesis")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="atheris instead of hypothesis")
    parser.add_argument("--again", type=pathlib.Path, help="a file that --guided wrote")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    if options.guided is not None or options.again is not None:
        guided(options.target, options.guided or 1, options.again)
    else:
        with_hypothesis(options.target, options.examples)


def limit_memory() -> None:
    """After everything is imported; see :data:`MEMORY`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def with_hypothesis(target: str, examples: int) -> None:
    """The same examples every time; what each led to is counted."""
    from choices import Drawn
    from hypothesis import HealthCheck, given, settings, strategies

    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if target == "core":
            import core_calls

            def once(data: strategies.DataObject) -> str:
                return core_calls.call(Drawn(data.draw))
        else:
            import file_readers

            file_readers.corpus()

            def once(data: strategies.DataObject) -> str:
                return file_readers.call(Drawn(data.draw), folder)

        limit_memory()

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck), print_blob=True,
        )  # fmt: skip
        @given(strategies.data())
        def fuzz(data: strategies.DataObject) -> None:
            outcomes[once(data)] += 1

        fuzz()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6d} {outcome}")


def guided(target: str, seconds: int, again: pathlib.Path | None) -> None:
    """Coverage-guided fuzzing; ends with a finding or after ``seconds``."""
    import atheris

    with atheris.instrument_imports(include=["rmp_fast", "PIL", "tifffile"]):
        import core_calls
        import file_readers
    from choices import Guided

    def once(data: bytes) -> None:
        if target == "core":
            core_calls.call(Guided(data))
            return
        # One for each file: atheris ends the process in ways that clean nothing up.
        with tempfile.TemporaryDirectory() as folder:
            file_readers.call(Guided(data), pathlib.Path(folder))

    file_readers.corpus()
    limit_memory()
    budget = (
        [str(again)]
        if again
        else [f"-max_total_time={seconds}", "-max_len=400", "-len_control=0", "-timeout=60", "-rss_limit_mb=0"]
    )
    atheris.Setup([sys.argv[0], *budget], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
