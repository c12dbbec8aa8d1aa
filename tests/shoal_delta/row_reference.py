"""A decoder of mode 9 as docs/delta-format.md tells it: one number after the other, Python's integers only.

Slow and plain on purpose: it shares nothing with the package that it checks.
"""

from math import isqrt


def limit(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def lg(value: int) -> int:
    """floor(16 log2) of the 13 leading bits: the largest l with 2^l <= value^16."""
    if value == 0:
        return 0
    extra = max(0, value.bit_length() - 13)
    return ((value >> extra << extra) ** 16).bit_length() - 1


def power(index: int) -> int:
    """floor(2^(16 + index / 64))."""
    root = 1 << 64 * 16 + index
    for _ in range(6):
        root = isqrt(root)
    return root


POWERS = [power(index) for index in range(64)]


def share(distance: int, spread: int) -> int:
    k = -8 * (2 * spread + 1)
    x = 84 * abs(distance) * POWERS[k % 64] >> 16 - k // 64
    tail = POWERS[-x % 64] >> min(32, -(-x // 64))
    below = (1 << 32) // ((1 << 16) + tail)
    return below if distance >= 0 else (1 << 16) - below


class Tables:
    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.noted: list[tuple[int, int]] = []
        self.counts = []
        for context in range(320):
            spread, centre = context // 8, 2 * (context % 8) + 1
            row = [
                max(
                    1,
                    (share(32 * d + 16 - centre, spread) - share(32 * d - 16 - centre, spread))
                    // 4,
                )
                for d in range(-reach, reach + 1)
            ]
            self.counts.append([*row, 1])
        self.frequencies = [self.frequency(row) for row in self.counts]

    def frequency(self, row: list[int]) -> list[int]:
        total, room = sum(row), (1 << 14) - len(row)
        out = [1 + count * room // total for count in row]
        out[self.reach] += (1 << 14) - sum(out)
        return out

    def learn(self) -> None:
        if not self.noted:
            return
        for context, symbol in self.noted:
            self.counts[context][symbol] += 256
        self.noted = []
        for context, row in enumerate(self.counts):
            if sum(row) > 1 << 17:
                self.counts[context] = [(count + 1) // 2 for count in row]
        self.frequencies = [self.frequency(row) for row in self.counts]


def factored(rows: list[list[int]], columns: int, strength: int, mean: int):
    """(L, v) of a matrix whose updates so far are `rows`."""
    if not rows or columns == 1:
        return None, [mean] * columns
    span = range(columns)
    c = [[sum(row[i] * row[j] for row in rows) for j in span] for i in span]
    shift = max(0, max(c[j][j] for j in span).bit_length() - 20)
    b = [[value >> shift for value in row] for row in c]
    t = max(1, sum(b[j][j] for j in span) // columns)
    doubt = max(1, strength * mean >> shift)
    a = [
        [
            16 * (sum(b[i][k] * b[k][j] for k in span) // (8 * t) + (doubt if i == j else 0))
            for j in span
        ]
        for i in span
    ]
    lower, pivots = [[0] * columns for _ in span], []
    for j in span:
        pivots.append(max(1, a[j][j]))
        below = [a[k][j] for k in span]
        for i in range(j + 1, columns):
            lower[i][j] = limit((below[i] << 16) // pivots[j], -(1 << 24), 1 << 24)
        for i in range(j + 1, columns):
            for k in range(j + 1, columns):
                a[i][k] -= lower[i][j] * below[k] >> 16
    part = max(1, sum(pivots) // columns)
    return lower, [max(1, pivot * mean // part) for pivot in pivots]


def shapes_of(model: bytes, sizes: list[int]) -> list[tuple[int, int, int]]:
    """(columns, is_transposed, strength) of each matrix."""
    at, out = 2, []
    for _ in sizes:
        shape = shift = 0
        while True:
            byte = model[at]
            at += 1
            shape |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        out.append((shape >> 1, shape & 1, (11 if model[at] & 1 else 8) << model[at] // 2))
        at += 1
    return out


class Decoder:
    def __init__(self, lanes: int, reach: int, stream: bytes, expected: list[int]) -> None:
        self.lanes, self.expected = lanes, expected
        self.tables = Tables(reach)
        self.states = [int.from_bytes(stream[4 * n : 4 * n + 4], "little") for n in range(lanes)]
        self.words = [
            int.from_bytes(stream[n : n + 2], "little") for n in range(4 * lanes, len(stream), 2)
        ]
        self.out = [0] * len(expected)

    def refill(self, lane: int) -> None:
        if self.states[lane] < 1 << 16:
            self.states[lane] = self.states[lane] << 16 | self.words.pop(0)

    def symbol(self, lane: int, context: int) -> int:
        frequencies = self.tables.frequencies[context]
        slot, low, symbol = self.states[lane] % (1 << 14), 0, 0
        while low + frequencies[symbol] <= slot:
            low += frequencies[symbol]
            symbol += 1
        self.states[lane] = frequencies[symbol] * (self.states[lane] >> 14) + slot - low
        self.tables.noted.append((context, symbol))
        return symbol

    def matrix(self, start: int, size: int, shape: tuple[int, int, int], m0: int) -> int:
        """Decode one; its mean square."""
        columns, is_transposed, strength = shape
        height = -(-size // columns)
        rows: list[list[int]] = []
        made_at, ratio, model = -1, 64, (None, [0])
        while len(rows) < height:
            n = len(rows)
            if made_at < 0 or (n > made_at and (2 * n >= 3 * made_at or n - made_at >= 256)):
                model, made_at = factored(rows, columns, strength, mean(rows, columns, m0)), n
            count = min(max(4, n // 2 & ~3), self.lanes, height - n)
            places = [
                [
                    start + (n + lane + j * height if is_transposed else (n + lane) * columns + j)
                    for j in range(columns)
                    if is_transposed or (n + lane) * columns + j < size
                ]
                for lane in range(count)
            ]
            updates, ratio = self.block(places, columns, model, ratio)
            rows += updates
        return mean(rows, columns, m0)

    def block(self, places, columns, model, first_ratio):
        """The updates of the rows whose numbers stand at `places`, and the ratio to go on with."""
        ratios = [first_ratio] * len(places)
        errors: list[list[int]] = [[] for _ in places]
        updates = [[0] * columns for _ in places]
        for j in range(columns):
            if j % 16 == 0:
                self.tables.learn()
            active = [lane for lane, row in enumerate(places) if j < len(row)]
            found = []
            for lane in active:
                centre, context, p = self.prediction(
                    model, errors[lane], ratios[lane], self.expected[places[lane][j]]
                )
                found.append((lane, centre, self.symbol(lane, context), p))
            for lane in active:
                self.refill(lane)
            far = []
            for lane, centre, symbol, p in found:
                reach, x = self.tables.reach, self.expected[places[lane][j]]
                d = symbol - reach if centre % 16 >= 8 else reach - symbol
                if symbol == 2 * reach + 1:
                    d = self.states[lane] % 256
                    self.states[lane] //= 256
                    far.append(lane)
                r = ((centre >> 4) + d + 128) % 256 - 128
                self.out[places[lane][j]] = r
                updates[lane][j] = 16 * r - x
                errors[lane].append(16 * r - x - p)
                missed = min(1024, 64 * errors[lane][j] ** 2 // model[1][j])
                ratios[lane] += (missed - ratios[lane]) * max(1024 // (j + 6), 64) >> 10
            for lane in far:
                self.refill(lane)
        return updates, max(1, sum(ratios) // len(ratios))

    def prediction(self, model, errors: list[int], ratio: int, x: int) -> tuple[int, int, int]:
        """(g, context, p) of the next column."""
        (lower, variance), j, p = model, len(errors), 0
        if lower is not None:
            total = sum(lower[j][k] * errors[k] for k in range(j))
            p = limit(total + (1 << 15) >> 16, -4064, 4064)
        g = limit(p + x, -2032, 2032) + 8
        f = g % 16 - 8
        spread = limit(lg(variance[j]) + lg(ratio) - 96 >> 3, 0, 39)
        return g, 8 * spread + (f if f >= 0 else -1 - f), p


def mean(rows: list[list[int]], columns: int, before: int) -> int:
    squares = sum(update * update for row in rows for update in row)
    return (squares + 2 * columns * before) // (len(rows) * columns + 2 * columns) + 1


def decode(model: bytes, stream: bytes, sizes: list[int], expected: list[int]) -> list[int]:
    """The residuals as signed bytes."""
    decoder = Decoder(1 << model[0], model[1], stream, expected)
    start, mean_square = 0, 64
    for size, shape in zip(sizes, shapes_of(model, sizes), strict=True):
        mean_square = decoder.matrix(start, size, shape, mean_square)
        start += size
    assert decoder.words == []
    assert decoder.states == [1 << 16] * decoder.lanes
    return decoder.out
