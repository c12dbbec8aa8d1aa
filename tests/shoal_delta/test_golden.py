"""Deltas that every later version must apply, byte for byte: format version 1.

Never change one: a format that cannot read them is another version. Between them they hold every kind
of operation, every mode of stream and every layout.
"""

import hashlib

import pytest

import shoal_delta
from shoal_delta.coders import Mode
from shoal_delta.container import Layout
from shoal_delta.operations import Kind

# 900 bytes of a pattern, then four float32 scales.
OLD = bytes((i * i // 7 + 3 * i) & 0xFF for i in range(900)) + b"".join(
    ((121 + i << 23) + 0x200000 * i).to_bytes(4, "little") for i in range(4)
)
# name: (sha256 of the new file, delta)
GOLDEN = {
    "segmented": (
        "a2f203128059ea9c55e7765576c84d676e2a4cfa4236a70e0dd476f45e25a714",
        (
            "5348440164000000009407af057887d94e2b330725f17c6a8bdf3b8840f557a530590be2d513893f31f8b033"
            "7fa2f203128059ea9c55e7765576c84d676e2a4cfa4236a70e0dd476f45e25a7141021028705be0388cf439b"
            "2800a909f155959fc37f4012f10405001710880e04050000ffffff04050000ffffff040500300f4f8f040201"
            "00ff353e0700000b2c401fffa74ce82713fa2d54dc0608d5e4c9e01e7a76ad8baee81d3fe3d455f94514b64c"
            "4941d7ea34def788504ee692b8248cd189ff3ffe336c83012c03025a501e3200000d0100a861206772617068"
            "206f66206e6f6465733b20746573030052c89098918045ce30401e020000c50000020405821110ecf44b6370"
            "eda8193f572c0390c569b30100ec018c0104007e801bdab66b03e3376d3b5e597dddf76217ed5b624f6b3598"
            "872e0afe7e1f4dd1c15ed5460b6c7544b87170dcde1ec30267f01914858b6c1064c749191b90f4ac86c01053"
            "9642ade6bc017c022d9fd8d9416b03cd647ca76a9b88bd72339902c3b5ee1b505ae764345f679904afa3fded"
            "10549cc942222e791693594551abb01578f3020b73ffafeaa03c3b050001417c5b00c8ffda01d4df03ae8625"
            "71b1a2431463da0e542de454546435d906d868bc061a4db0b5d3192bdb4cbe4cb4f25e8eda2afff2f6793c31"
            "06000000600285b5e9b7fe0a3dd09b5cdc5a519f6aff368ccce0fc9c22f62d7f386ac3ae5ffb66ade3833670"
            "bffd447880141500000000000000000000fefd02fefe01fe02060a0e14150000000000000000000001010201"
            "01000103070b0f"
        ),
    ),
    "run": (
        "9436d28ed05ffad8f13071b9429a62a2d2b1cea8d9b95573094f2548a312f3ac",
        (
            "534844015a0000000094078c087887d94e2b330725f17c6a8bdf3b8840f557a530590be2d513893f31f8b033"
            "7f9436d28ed05ffad8f13071b9429a62a2d2b1cea8d9b95573094f2548a312f3ac00018c080d0ec75113148c"
            "f72a03050600009407017878020105"
        ),
    ),
    "solid-lzma": (
        "a2f203128059ea9c55e7765576c84d676e2a4cfa4236a70e0dd476f45e25a714",
        (
            "534844015f000000019407af057887d94e2b330725f17c6a8bdf3b8840f557a530590be2d513893f31f8b033"
            "7fa2f203128059ea9c55e7765576c84d676e2a4cfa4236a70e0dd476f45e25a7140002c8016057d65ae70362"
            "32e86e7fb5275f000000ea85008b7380957a2392775b08d58b122a5fa596559a22119545e3b812a2144bfd92"
            "5d476d627fc423b175cfd3701158b39dcf8d4ceac3d352d90c028ad6005da331a973396b44a8bf8a8fe6240b"
            "f24bfc8957c597b233344efb319d4f3372533a579c6e86cee084ba20939e2d9160c84d5fb6b5b63a022185e9"
            "1fcf36ac479f20cdef35074157569fa8b0894c931e9ec2e5411aa5c8bcc4aaf350004417554ef7a9e8478ef9"
            "4f416700371f1ea2237afb1cea5cbe425129a7e531649307c05d17beca02d467bd84d88b9a33d7d45ac985b3"
            "7d6956213e8f825d1dfda10be423a1751243bd8c60c3a2b449fa4710b1cd2965df4f6f2721844d8fd86e223a"
            "2845b3d792d877b934f8222755d01d0f1309e12a62a39b42e220415457b41c0b74c253cb0db39ccc69f86901"
            "48c2d39d24506b24f13d69df78a4cd1a6ca09aa48ed4a7ef3080a86ccb6de493e13e0b2ce1b4b288644b79d7"
            "df4b983fd600aa31a2b72fa401bbc2665608f01b5383fd52ce1051fdc23de69d8359cfca56dbf77d0a1a67be"
            "27e6ff2970106e64bd9c5d3c9d8353a13f3b5e60929ff3ec08c36da033085bb0f5b26b2b779e9d82682a0650"
            "8ba2cecc0b4d239c3eea4b62d70eb1e47b894da11bab96bcd6467e13737b3e47f5eaec840e73e5f076dcf60e"
            "1f7d23bed20e2cbd7739650aa0af57e79cf6e6f24d737a98933a6c4640484492512ce96830968a4287ada357"
            "589a5d9d1e9578d119db2cfc17f7575af41d372178b5250ac73a52aa908a6326bfb3d1758c84caa1d4b8cf04"
            "19b3d93c0d4a2de426a096e94aa4ee5010b8cd90e65951bccd9fa146d8c43e3c2ead532715cf4074a7c85028"
            "99b2285be25321ff8d5f8000"
        ),
    ),
    "solid-zstd": (
        "db2d73c1cf612c86ea301deb503abce8116cd2d7aa43814b198269b4461f99f9",
        (
            "534844015e000000029407ac027887d94e2b330725f17c6a8bdf3b8840f557a530590be2d513893f31f8b033"
            "7fdb2d73c1cf612c86ea301deb503abce8116cd2d7aa43814b198269b4461f99f90002c8016057d65a641748"
            "65f98098bac10000e50700140e0003060a0e12171c21262c32383f464d545c646c757e87909aa4aeb9c4cfda"
            "e6f2fe0b182532404e61206772617068206f66206e6f6465733b20c0e00020416283a4c6e80a2d507396bade"
            "02274c7196bce2082f567da4ccf41c456e97c0ea143e6994bfea16426e9bc8f522507eacdb0a396898c8f874"
            "6573020300030102020103000101020100030002030303000202020003020300030100020303030100a7e622"
            "60a0d8185593d510508dce0e5192d2115698d6175c9ee5266aadf23a7ac3034b95db1c68aff43b87cf165da5"
            "f33884cf1763b1f84795df2c78c8105faffd090037839309a066607202641340cc185e1058c2f2d645ce3d"
        ),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_delta_still_gives_its_file(name):
    digest, delta = GOLDEN[name]
    made = shoal_delta.apply(OLD, bytes.fromhex(delta))
    assert hashlib.sha256(made).hexdigest() == digest


def test_the_golden_deltas_hold_all_that_the_format_has():
    infos = [shoal_delta.inspect(bytes.fromhex(delta), OLD) for _, delta in GOLDEN.values()]
    streams = [s for info in infos for segment in info.segments for s in segment.streams]
    assert {s.mode for s in streams} >= {m.name.lower().replace("_", "-") for m in Mode}
    kinds = {mode for info in infos for part in info.tensors for mode in part.modes}
    assert kinds == {k.name.lower().replace("_", "-") for k in Kind}
    assert len({info.layout for info in infos}) == len(Layout)
