"""Feed damaged and hostile files to everything that reads a stranger's file.

    python -m tests.trust.fuzz --inputs 20000

Each kind of hostile.py runs in a process of its own with limited memory. hypothesis chooses the mutations of valid
files: bytes flipped, cut, doubled, spliced in, and JSON values replaced by hostile ones. An input may be read or
refused with an ExcitorError; everything else is a finding, and so is a file written outside the scratch folder, a
process started or a pickle opened, which an audit hook sees.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tests.trust.hostile import REFUSED, Kind, kinds, mutated, refusing

MEMORY = 6 * 2**30  # address space of a process; what torch and its libraries map takes about half


def fuzz(kind: Kind, scratch: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Run one kind in this process; counts and findings."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    scratch.mkdir()
    os.chdir(scratch)
    set_hypothesis_home_dir(scratch / "hypothesis")
    outside: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith((str(scratch), "/dev/")):
                outside.append(path)
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"):
            outside.append(f"{event} {arguments}"[:200])

    findings: dict[str, tuple[str, bytes]] = {}
    counts = {"inputs": 0, "refused": 0}

    @settings(
        max_examples=inputs, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(kind.files) - 1))
        for place, (name, content) in enumerate(kind.files):
            found = data.draw(mutated(content)) if place == number else content
            (scratch / name).write_bytes(found)
            if place == number:
                changed = found
        counts["inputs"] += 1
        REFUSED.clear()
        try:
            refusing(kind.read, scratch)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {frame.filename}:{frame.lineno}"
            findings.setdefault(where, (traceback.format_exc(limit=-4), changed))
        counts["refused"] += bool(REFUSED)

    sys.addaudithook(watch)
    torch.manual_seed(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run._hypothesis_internal_use_seed = seed
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **counts,
        "findings": {where: [text, data[:300].hex()] for where, (text, data) in findings.items()},
        "outside": sorted(set(outside)),
        "peak_mib": after / 1024,
        "grown_mib": (after - before) / 1024,
    }


def main(inputs: int, seed: int, chosen: list[str]) -> int:
    """Fork a process for each kind; print a table; 0 without findings."""
    torch.set_num_threads(1)
    bad = total = 0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        table = kinds(scratch)
        chosen = chosen or list(table)
        print("| kind | inputs | refused | tracebacks | outside | crashed | peak MiB | grown MiB |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in chosen:
            report = scratch / f"{kind}.json"
            process = os.fork()
            if not process:
                try:
                    report.write_text(json.dumps(fuzz(table[kind], scratch / f"{kind}-inputs", inputs, seed)))
                except BaseException:
                    report.with_suffix(".txt").write_text(traceback.format_exc())
                finally:
                    os._exit(0)
            crashed = os.waitpid(process, 0)[1] != 0 or not report.exists()
            facts = json.loads(report.read_text()) if report.exists() else {}
            counts = [len(facts.get("findings", ())), len(facts.get("outside", ())), int(crashed)]
            cells = [kind, facts.get("inputs"), facts.get("refused"), *counts]
            cells += [round(facts.get("peak_mib", 0)), round(facts.get("grown_mib", 0))]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            for where, (text, data) in facts.get("findings", {}).items():
                print(f"\n{where}\n{text}{data}\n", file=sys.stderr)
            for item in facts.get("outside", ()):
                print(f"outside: {item}", file=sys.stderr)
            if crashed and report.with_suffix(".txt").exists():
                print(report.with_suffix(".txt").read_text(), file=sys.stderr)
            bad += sum(counts)
            total += facts.get("inputs", 0)
    print(f"{total} inputs, {bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=20_000, help="over all kinds")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "kinds", nargs="*", help="image, shard, index, annotations, adapter, config; all unless given"
    )
    options = arguments.parse_args()
    count = len(options.kinds) or 6
    sys.exit(main(-(-options.inputs // count), options.seed, options.kinds))
