"""The scenarios, as data. A new one is a new row."""
import enum
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
MACHINE_PER_UNIT = Metric("machine_us_per_unit", "machine µs", 1)
MACHINE_PER_GIB = Metric("machine_s_per_gib", "machine s/GiB", 3)
UNIT_RATE = Metric("units_per_s", "/s", 0, lower_is_better=False)
BYTE_RATE = Metric("gib_per_s", "GiB/s", 2, lower_is_better=False)
P50 = Metric("p50_us", "p50 µs", 0)
P99 = Metric("p99_us", "p99 µs", 0)
P99_TYPICAL = Metric("p99_typical_us", "typical p99 µs", 0)
P999 = Metric("p999_us", "p99.9 µs", 0)
MEMORY = Metric("pss_bytes_per_session", "B/session (PSS)", 0)
ANONYMOUS = Metric("anon_bytes_per_session", "B/session (anonymous)", 0)
WHOLE = Metric("whole_bytes_per_session", "B/session (whole process)", 0)
DESCRIPTORS = Metric("fds_per_session", "descriptors/session", 2)
ALIVE = Metric("alive", "sessions alive", 0, lower_is_better=False)
NEIGHBOUR = Metric("neighbour_mib_per_s", "neighbour MiB/s", 0, lower_is_better=False)
BUSIEST = Metric("busiest_share", "% of CPU in the busiest worker", 0)


class Tool(enum.Enum):
    """Who makes the load, and with what behind the forwarder."""
    LOAD = "ringweir-load"          # against `ringweir-load backend`
    IPERF3 = "iperf3"               # against `iperf3 -s`
    WRK = "wrk"                     # against nginx as a web server


class Place(enum.Enum):
    """Where the forwarder runs."""
    ALONE = "one worker, alone on its core"
    BESIDE_LOAD = "one worker, on the load's core"
    BOTH = "two workers, one on each core, the load on the first"


class Role(enum.Enum):
    """Which end of a Shadowsocks tunnel the forwarder is."""
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `args` go to the tool; the first metric is the headline."""
    name: str
    title: str
    args: tuple
    metrics: tuple
    in_short: bool = True
    rounds_at_most: int = 99        # memory hardly varies; speed does
    rounds_at_most_short: int = 99
    beside: tuple | None = None     # a second load at the same time, on the same core as the first
    sessions: int = 0               # for the idle kind, which the lab drives itself
    tool: Tool = Tool.LOAD
    place: Place = Place.ALONE
    family: str = ""                # scenarios that are chosen and drawn together
    size_bytes: int = 0             # its place on the family's axis
    floor: bool = False             # measured without any forwarder too: what the rig itself costs
    role: Role | None = None        # of a tunnel; None: a plain forwarder
    method: str = ""                # how that tunnel is sealed

    @property
    def workers(self):
        """How many workers, threads or processes the forwarder is told to run."""
        return 2 if self.place is Place.BOTH else 1

    @property
    def is_open_loop(self):
        """Messages are due at fixed times; latency is what is measured."""
        return self.args[:1] == ("rate",)

    def seconds(self, window):
        """The length of its measured window where `window` is the run's: iperf3 and wrk count whole seconds."""
        return window if self.tool is Tool.LOAD else float(max(1, round(window)))


EXCHANGE = (CPU_PER_UNIT, UNIT_RATE, P50, P99, MACHINE_PER_UNIT)
STREAM = (CPU_PER_GIB, BYTE_RATE, MACHINE_PER_GIB)
LATENCY = (P99_TYPICAL, P50, P99, P999, CPU_PER_UNIT)
HELD = (ALIVE, DESCRIPTORS, MEMORY)

KIB = 1 << 10
METHODS = (("aes", "aes-256-gcm"), ("chacha", "chacha20-ietf-poly1305"), ("2022", "2022-blake3-aes-256-gcm"))
CURVE_KIB = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def _ping_pong(name, message_bytes, connections, **more):
    size = f"{message_bytes} B" if message_bytes < KIB else f"{message_bytes // KIB} KiB"
    return Scenario(name, f"{size} ping-pong ×{connections}",
                    ("pingpong", "--size", str(message_bytes), "--connections", str(connections)), EXCHANGE, **more)


def _witness(name, title, args, tool, metrics, **more):
    return Scenario(name, title, args, metrics, tool=tool, rounds_at_most_short=1, family=tool.value, **more)


def _scaling(name, title, args, metrics):
    # The two-worker run has one worker on the load's core and one alone: both are measured singly too.
    places = (("alone", Place.ALONE), ("beside", Place.BESIDE_LOAD), ("two", Place.BOTH))
    return [Scenario(f"scale-{name}-{suffix}", f"{title}: {place.value}", args,
                     metrics + ((BUSIEST,) if place is Place.BOTH else ()), in_short=False, place=place, family="scale")
            for suffix, place in places]


def _tunnels():
    loads = (("echo-64", "64 B ping-pong ×64", ("pingpong", "--size", "64", "--connections", "64"), EXCHANGE),
             ("echo-16k", "16 KiB ping-pong ×64", ("pingpong", "--size", str(16 * KIB), "--connections", "64"), EXCHANGE),
             ("up", "upload ×4", ("up", "--connections", "4"), STREAM),
             ("down", "download ×4", ("down", "--connections", "4"), STREAM))
    return [Scenario(f"ss-{role.value}-{short}-{name}", f"{role.value}, {method}: {title}", args, metrics,
                     in_short=False, family="shadowsocks", role=role, method=method)
            for role in Role for short, method in METHODS for name, title, args, metrics in loads]


SCENARIOS = (
    _ping_pong("echo-64", 64, 64),
    _ping_pong("echo-16k", 16 * KIB, 64),
    _ping_pong("echo-64k", 64 * KIB, 16),
    Scenario("crr", "connect, 64 B echo, close ×64", ("crr", "--size", "64", "--connections", "64"), EXCHANGE),
    Scenario("up", "upload ×4", ("up", "--connections", "4"), STREAM),
    Scenario("down", "download ×4", ("down", "--connections", "4"), STREAM),
    Scenario("idle", "4,000 idle sessions", ("idle", "--size", "64"),
             (MEMORY, ANONYMOUS, WHOLE, DESCRIPTORS, ALIVE), rounds_at_most=1, sessions=4_000),
    Scenario("capacity", "9,900 sessions under 20,000 descriptors, one worker", ("idle", "--size", "64"), HELD,
             in_short=False, rounds_at_most=1, sessions=9_900),
    Scenario("capacity-two", "9,900 sessions under 20,000 descriptors, two workers", ("idle", "--size", "64"), HELD,
             in_short=False, rounds_at_most=1, sessions=9_900, place=Place.BOTH),
    Scenario("rate-64", "64 B at 10,000/s ×64",
             ("rate", "--size", "64", "--connections", "64", "--rate", "10000"), LATENCY, in_short=False, floor=True),
    Scenario("beside-bulk", "64 B at 2,000/s ×32 beside a 500 MiB/s download",
             ("rate", "--size", "64", "--connections", "32", "--rate", "2000"), (P99_TYPICAL, P50, P99, P999, NEIGHBOUR),
             in_short=False, floor=True, beside=("down", "--connections", "1", "--mib-per-second", "500")),
    _witness("iperf3-up", "iperf3, one stream up", (), Tool.IPERF3, STREAM),
    _witness("iperf3-down", "iperf3, one stream down (-R)", ("-R",), Tool.IPERF3, STREAM, in_short=False),
    _witness("iperf3-up-x4", "iperf3, four streams up (-P 4)", ("-P", "4"), Tool.IPERF3, STREAM, in_short=False),
    _witness("iperf3-down-x4", "iperf3, four streams down (-P 4 -R)", ("-P", "4", "-R"), Tool.IPERF3, STREAM,
             in_short=False),
    _witness("wrk-128", "wrk, HTTP keep-alive, 128 B each ×64", ("-c", "64", "/128"), Tool.WRK, EXCHANGE),
    _witness("wrk-64k", "wrk, HTTP keep-alive, 64 KiB each ×16", ("-c", "16", "/65536"), Tool.WRK, EXCHANGE,
             in_short=False),
    *_scaling("crr", "connect, 64 B echo, close ×64", ("crr", "--size", "64", "--connections", "64"), EXCHANGE),
    *_scaling("up", "upload ×16", ("up", "--connections", "16"), STREAM),
    Scenario("balance", "64 B at 20,000/s ×1,024, two workers",
             ("rate", "--size", "64", "--connections", "1024", "--rate", "20000"), (BUSIEST, CPU_PER_UNIT, P99_TYPICAL),
             in_short=False, place=Place.BOTH, family="scale"),
    *(_ping_pong(f"curve-{kib}k" if kib < KIB else f"curve-{kib // KIB}m", kib * KIB, 16,
                 in_short=False, family="curve", size_bytes=kib * KIB) for kib in CURVE_KIB),
    *_tunnels(),
)

FAMILIES = tuple(dict.fromkeys(row.family for row in SCENARIOS if row.family))
