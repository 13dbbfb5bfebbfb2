"""Reads what `ringweir-load` writes: HdrHistogram interval logs, V2, compressed (github.com/HdrHistogram)."""
import base64
import struct
import zlib

COMPRESSED_COOKIE, PLAIN_COOKIE = 0x1C849304, 0x1C849303
COOKIE_BASE = 0xFFFFFF0F            # these four bits give the word size, which does not matter here
HEADER = struct.Struct(">iiiiqqd")  # cookie, length, offset, digits, lowest, highest, ratio


def read(path):
    """{highest value of a bucket: count} over all intervals of a log."""
    counts = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(("#", '"')) or not line:
            continue
        for value, count in _decode(base64.b64decode(line.rsplit(",", 1)[1])):
            counts[value] = counts.get(value, 0) + count
    return counts


def at_quantiles(counts, quantiles):
    """[(quantile, value)] for those quantiles that the number of samples can tell."""
    total, seen, found = sum(counts.values()), 0, []
    wanted = [quantile for quantile in quantiles if total * (1 - quantile) >= 1]
    for value in sorted(counts):
        seen += counts[value]
        while wanted and seen >= wanted[0] * total:
            found.append((wanted.pop(0), value))
    return found


def _decode(blob):
    cookie, length = struct.unpack_from(">ii", blob)
    if cookie & COOKIE_BASE != COMPRESSED_COOKIE & COOKIE_BASE:
        raise ValueError(f"not a compressed V2 histogram: cookie {cookie:#x}")
    plain = zlib.decompress(blob[8:8 + length])
    cookie, length, _offset, digits, lowest, _highest, _ratio = HEADER.unpack_from(plain)
    if cookie & COOKIE_BASE != PLAIN_COOKIE & COOKIE_BASE:
        raise ValueError(f"not a V2 histogram: cookie {cookie:#x}")
    half_magnitude = (2 * 10 ** digits - 1).bit_length() - 1
    unit_magnitude = max(lowest, 1).bit_length() - 1
    index = 0
    for number in _zigzag(plain[HEADER.size:HEADER.size + length]):
        if number < 0:              # so many empty buckets
            index -= number
            continue
        if number:
            yield _highest_value(index, half_magnitude, unit_magnitude), number
        index += 1


def _highest_value(index, half_magnitude, unit_magnitude):
    bucket = (index >> half_magnitude) - 1
    sub = (index & ((1 << half_magnitude) - 1)) + (1 << half_magnitude)
    if bucket < 0:
        bucket, sub = 0, sub - (1 << half_magnitude)
    return ((sub + 1) << (bucket + unit_magnitude)) - 1


def _zigzag(data):
    position = 0
    while position < len(data):
        number = shift = 0
        while True:
            byte = data[position]
            position += 1
            if shift == 56:         # the ninth byte carries eight bits
                number |= byte << shift
                break
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield (number >> 1) ^ -(number & 1)
