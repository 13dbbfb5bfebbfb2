"""The scenarios, as data. A new one is a new row."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a figure is shown, and which way is better."""
    key: str
    unit: str
    digits: int
    lower_is_better: bool = True


CPU_PER_UNIT = Metric("cpu_us_per_unit", "CPU µs", 1)
CPU_PER_GIB = Metric("cpu_s_per_gib", "CPU s/GiB", 3)
UNIT_RATE = Metric("units_per_s", "/s", 0, lower_is_better=False)
BYTE_RATE = Metric("gib_per_s", "GiB/s", 2, lower_is_better=False)
P50 = Metric("p50_us", "p50 µs", 0)
P99 = Metric("p99_us", "p99 µs", 0)
P999 = Metric("p999_us", "p99.9 µs", 0)
MEMORY = Metric("pss_bytes_per_session", "B/session (PSS)", 0)
ANONYMOUS = Metric("anon_bytes_per_session", "B/session (anonymous)", 0)
WHOLE = Metric("whole_bytes_per_session", "B/session (whole process)", 0)
DESCRIPTORS = Metric("fds_per_session", "descriptors/session", 2)
ALIVE = Metric("alive", "sessions alive", 0, lower_is_better=False)


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `args` go to `ringweir-load run`; the first metric is the headline."""
    name: str
    title: str
    args: tuple
    metrics: tuple
    goal: float | None = None       # ringweir over the best peer, from the project's goals
    in_short: bool = True
    rounds_at_most: int = 99        # memory hardly varies; speed does
    beside: tuple | None = None     # a second load at the same time, on the same core as the first
    sessions: int = 0               # for the idle kind, which the lab drives itself


EXCHANGE = (CPU_PER_UNIT, UNIT_RATE, P50, P99)
STREAM = (CPU_PER_GIB, BYTE_RATE)
LATENCY = (P99, P50, P999, CPU_PER_UNIT)

SCENARIOS = (
    Scenario("echo-64", "64 B ping-pong ×64",
             ("pingpong", "--size", "64", "--connections", "64"), EXCHANGE, goal=0.80),
    Scenario("echo-16k", "16 KiB ping-pong ×64",
             ("pingpong", "--size", "16384", "--connections", "64"), EXCHANGE, goal=0.85),
    Scenario("echo-64k", "64 KiB ping-pong ×16",
             ("pingpong", "--size", "65536", "--connections", "16"), EXCHANGE, goal=0.80),
    Scenario("crr", "connect, 64 B echo, close ×64",
             ("crr", "--size", "64", "--connections", "64"), EXCHANGE, goal=0.85),
    Scenario("up", "upload ×4", ("up", "--connections", "4"), STREAM, goal=0.75),
    Scenario("down", "download ×4", ("down", "--connections", "4"), STREAM, goal=0.75),
    Scenario("idle", "4,000 idle sessions", ("idle", "--size", "64"),
             (MEMORY, ANONYMOUS, WHOLE, DESCRIPTORS, ALIVE), rounds_at_most=1, sessions=4_000),
    Scenario("rate-64", "64 B at 10,000/s ×64",
             ("rate", "--size", "64", "--connections", "64", "--rate", "10000"), LATENCY, in_short=False),
    Scenario("beside-bulk", "64 B at 2,000/s ×32 beside a 500 MiB/s download",
             ("rate", "--size", "64", "--connections", "32", "--rate", "2000"), (P99, P50, P999),
             goal=1.0, in_short=False,
             beside=("down", "--connections", "1", "--mib-per-second", "500")),
    Scenario("capacity", "9,900 sessions under 20,000 descriptors", ("idle", "--size", "64"),
             (ALIVE, DESCRIPTORS, MEMORY), in_short=False, rounds_at_most=1, sessions=9_900),
)
