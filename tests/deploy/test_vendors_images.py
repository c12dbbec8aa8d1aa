"""Which form of the seed fits which vendor's image, and what is refused: a board that would never appear is found here, not in the field."""

from pathlib import Path

import pytest
from tests.deploy.collection_modules import module_utils
from tests.deploy.stock_images import LAYOUTS, make, system_of

disk = module_utils("board_disk")
MIB = 2**20
SEED = {"user-data": b"#cloud-config\n{}\n", "meta-data": b"{}\n", "shoal/token": b"T\n"}

pytestmark = pytest.mark.skipif(
    bool(disk.missing_tools()), reason=f"not installed: {' '.join(disk.missing_tools())}"
)


@pytest.mark.parametrize("name", ["raspios-13", "ubuntu-raspi"])
def test_the_boot_partition_takes_the_seed_in_place_of_the_examples(
    tmp_path: Path, name: str
) -> None:
    layout = LAYOUTS[name]
    image = make(layout, tmp_path / "stock.img")
    start = disk.boot_partition(image)
    disk.check_reads_seed(image, start)
    disk.put(image, start, SEED, {})
    disk.check(image, start, SEED, {})
    # What the firmware reads is as it was.
    kept = {key: value for key, value in layout.files if key.endswith(".txt")}
    disk.check(image, start, kept, {})
    assert system_of(layout, image) == system_of(layout, make(layout, tmp_path / "again.img"))


@pytest.mark.parametrize(
    "name", ["debian-generic", "ubuntu-cloud", "armbian", "armbian-fat", "ubuntu-raspi"]
)
def test_a_seed_partition_goes_behind_whatever_order_the_table_has(
    tmp_path: Path, name: str
) -> None:
    layout = LAYOUTS[name]
    image = make(layout, tmp_path / "stock.img")
    before = {row["node"]: row for row in disk.partitions(image)["partitions"]}
    start = disk.add_seed_partition(image, MIB)
    disk.put(image, start, SEED, {})
    disk.check(image, start, SEED, {})
    assert disk.seed_partition(image) == start
    after = {row["node"]: row for row in disk.partitions(image)["partitions"]}
    (added,) = after.keys() - before.keys()
    assert {node: after[node] for node in before} == before
    assert all(row["start"] + row["size"] <= after[added]["start"] for row in before.values())
    assert system_of(layout, image) == system_of(layout, make(layout, tmp_path / "again.img"))


@pytest.mark.parametrize("name", ["raspios-12", "armbian-fat", "debian-generic"])
def test_a_boot_partition_that_nobody_would_look_at_is_refused(tmp_path: Path, name: str) -> None:
    image = make(LAYOUTS[name], tmp_path / "stock.img")
    with pytest.raises(disk.DiskError, match="has no user-data: it is an image without cloud-init"):
        disk.check_reads_seed(image, disk.boot_partition(image))


def test_an_image_without_a_fat_is_told_to_take_the_other_form(tmp_path: Path) -> None:
    image = make(LAYOUTS["armbian"], tmp_path / "stock.img")
    with pytest.raises(disk.DiskError, match="use the form cidata"):
        disk.boot_partition(image)
