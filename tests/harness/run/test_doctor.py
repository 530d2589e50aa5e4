import pytest

from harness.plan.machine import Device, Machine
from harness.run import doctor

GIB_KB = 2**20
MEMORY = "MemTotal: 16777216 kB\nMemAvailable: {available} kB\nSwapTotal: 2097152 kB\nSwapFree: {free} kB\n"


def files(root, **texts):
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


CPU = "sys/devices/system/cpu"
# check -> [(files, severity, a word of what was seen)]
CASES = [
    (doctor.governor, {f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n"}, "ok", "performance"),
    (
        doctor.governor,
        {
            f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave\n",
        },
        "warning",
        "performance, powersave",
    ),
    (doctor.turbo, {f"{CPU}/intel_pstate/no_turbo": "0\n"}, "note", "on"),
    (doctor.turbo, {f"{CPU}/intel_pstate/no_turbo": "1\n"}, "ok", "off"),
    (doctor.turbo, {f"{CPU}/cpufreq/boost": "1\n"}, "note", "on"),
    (doctor.turbo, {f"{CPU}/cpufreq/boost": "0\n"}, "ok", "off"),
    (doctor.smt, {f"{CPU}/smt/active": "1\n"}, "note", "share"),
    (doctor.smt, {f"{CPU}/smt/active": "0\n"}, "ok", "off"),
    (doctor.memory, {"proc/meminfo": MEMORY.format(available=9 * GIB_KB, free=2097152)}, "ok", "9.0 GiB"),
    (doctor.memory, {"proc/meminfo": MEMORY.format(available=2 * GIB_KB, free=2097152)}, "warning", "2.0 GiB"),
    (doctor.swap, {"proc/meminfo": MEMORY.format(available=GIB_KB, free=2097152)}, "ok", "none"),
    (doctor.swap, {"proc/meminfo": MEMORY.format(available=GIB_KB, free=1048576)}, "warning", "1.0 GiB"),
    (doctor.huge_pages, {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"}, "ok", "always"),
    (doctor.huge_pages, {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"}, "note", "madvise"),
    (doctor.clock, {"sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n"}, "ok", "tsc"),
    (doctor.clock, {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"}, "warning", "hpet"),
    (doctor.virtual, {"proc/cpuinfo": "processor: 0\nflags\t\t: fpu hypervisor avx2\n"}, "note", "hypervisor"),
    (doctor.virtual, {"proc/cpuinfo": "processor: 0\nflags\t\t: fpu avx2\n"}, "ok", "no hypervisor"),
    (doctor.power, {"sys/class/power_supply/AC/online": "0\n"}, "warning", "battery"),
    (doctor.power, {"sys/class/power_supply/AC/online": "1\n"}, "ok", "mains"),
    (doctor.power, {}, "ok", "no battery"),
]


@pytest.mark.parametrize(("check", "texts", "severity", "seen"), CASES)
def test_a_check_says_what_it_saw_and_what_to_do(tmp_path, check, texts, severity, seen):
    files(tmp_path, **texts)
    finding = check(tmp_path)
    assert finding.severity == severity
    assert seen in finding.seen
    assert bool(finding.advice) == (severity in ("note", "warning"))


@pytest.mark.parametrize(
    "check",
    [
        doctor.governor,
        doctor.turbo,
        doctor.smt,
        doctor.memory,
        doctor.swap,
        doctor.huge_pages,
        doctor.clock,
        doctor.virtual,
    ],
)
def test_what_cannot_be_seen_is_unknown_and_never_guessed(tmp_path, check):
    assert check(tmp_path).severity == "unknown"


@pytest.mark.parametrize(("average", "severity"), [("0.10", "ok"), ("1.90", "warning")])
def test_load_is_judged_by_the_cores(tmp_path, average, severity):
    files(tmp_path, **{"proc/loadavg": f"{average} 0.5 0.4 1/200 999\n"})
    assert doctor.load(tmp_path, cores=2).severity == severity
    assert doctor.load(tmp_path / "empty", cores=2).severity == "unknown"


@pytest.mark.parametrize(
    ("text", "severity"), [("max 100000", "ok"), ("200000 100000", "ok"), ("150000 100000", "warning")]
)
def test_a_quota_below_the_cores_is_a_warning(tmp_path, text, severity):
    files(tmp_path, **{"sys/fs/cgroup/cpu.max": text + "\n"})
    assert doctor.quota(tmp_path, cores=2).severity == severity


def test_steal_is_the_share_between_two_readings():
    before = "cpu  100 0 100 800 0 0 0 50 0 0"
    assert doctor.steal(before, "cpu  200 0 100 1000 0 0 0 50 0 0").severity == "ok"
    finding = doctor.steal(before, "cpu  190 0 100 1000 0 0 0 60 0 0")
    assert (finding.severity, finding.seen) == ("warning", "3.3 % of the time went to other guests")
    assert doctor.steal(before, before).severity == "unknown"
    assert doctor.steal("", "").severity == "unknown"
    assert doctor.steal("cpu 1 2 3", "cpu 2 3 4").severity == "unknown"


def stat(pid, name, ticks):
    return f"{pid} ({name}) R 1 1 1 0 -1 4194304 0 0 0 0 {ticks} 0 0 0 20 0 1 0 100 0 0\n"


def test_heavy_processes_are_named_with_their_share(tmp_path):
    files(
        tmp_path,
        **{
            "proc/1/stat": stat(1, "init", 500),
            "proc/77/stat": stat(77, "a (b) c", 10),
            "proc/80/stat": "torn",
            "proc/self/stat": "not a number",
        },
    )
    before = doctor.cpu_ticks(tmp_path)
    assert before == {1: ("init", 500), 77: ("a (b) c", 10)}
    files(tmp_path, **{"proc/77/stat": stat(77, "a (b) c", 55), "proc/90/stat": stat(90, "new", 99)})
    after = doctor.cpu_ticks(tmp_path)
    finding = doctor.heavy_processes(before, after, elapsed_s=0.5, ticks_per_s=100)
    assert (finding.severity, finding.seen) == ("warning", "a (b) c (pid 77) 90 %")
    assert doctor.heavy_processes(before, after, 0.5, 100, own=[77]).severity == "ok"


def test_disk_and_peers_and_cuda(tmp_path):
    assert doctor.disk(tmp_path, 3 * 2**30).severity == "ok"
    assert "--out" in doctor.disk(tmp_path, 2**30).advice
    assert [finding.severity for finding in doctor.peers(lambda name: True)] == ["ok"]
    (missing,) = doctor.peers(lambda name: name != "galore_torch")
    assert "pip install galore-torch" in missing.advice and "GaLore" in missing.advice
    machine = Machine("CPU", 2, 2**34, {}, (), "Linux", (Device("cpu", "CPU", 2**34),))
    gpu = Machine("CPU", 2, 2**34, {}, (), "Linux", (Device("cpu", "CPU", 2**34), Device("cuda:0", "GPU", 2**36)))
    assert doctor.cuda(tmp_path, machine).severity == "note"
    found = doctor.cuda(tmp_path, gpu, torch_version="2.13.0+cu130")
    assert (found.severity, found.seen) == ("ok", "cuda:0 GPU")
    found = doctor.cuda(tmp_path, gpu, torch_version="2.13.0+cpu")
    assert found.severity == "warning" and "build without CUDA" in found.seen


@pytest.mark.parametrize("path", ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg"])
@pytest.mark.parametrize(("installed", "environ", "advice"), [
    (False, {}, "pip install nvidia-ml-py"),
    (True, {"CUDA_VISIBLE_DEVICES": "7"}, "nvidia-smi -L"),
    (True, {}, "nvidia-smi"),
])
def test_a_driver_without_a_visible_device_is_a_warning_with_its_cause(tmp_path, path, installed, environ, advice):
    files(tmp_path, **{path: ""})
    machine = Machine("CPU", 2, 2**34, {}, (), "Linux", (Device("cpu", "CPU", 2**34),))
    finding = doctor.cuda(tmp_path, machine, lambda name: installed or name != "pynvml", environ)
    assert finding.severity == "warning" and advice in finding.advice
    if environ:
        assert "CUDA_VISIBLE_DEVICES=7" in finding.seen


def test_this_machine_is_examined_whole(tmp_path):
    from harness.plan.machine import this_machine

    pauses = []
    findings = doctor.examine(this_machine(), tmp_path, pauses.append)
    names = [finding.check for finding in findings]
    assert pauses == [0.5]
    assert len(names) == len(set(names)) >= 15
    assert {"governor", "load", "steal", "memory", "disk", "clock", "cuda"} <= set(names)
