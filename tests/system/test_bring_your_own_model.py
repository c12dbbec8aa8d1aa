"""docs/bring-your-own-model.md, done as it says: every command of the page, in its order."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from tests.shoal_fleet.conftest import Site, broker, quiet_logs, quiet_site, site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/bring-your-own-model.md"
__all__ = ["broker", "quiet_logs", "quiet_site", "site"]


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_every_command_of_the_page_does_what_the_page_says(site: Site, tmp_path: Path):
    await site.nodes(2)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SHOAL_STATE_DIR": str(site.state_dir),
    }
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tools").symlink_to(ROOT / "tools")
    said = []
    for block in blocks():
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", block),
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{block}\n{out.decode()}"
        said.append(out.decode())
    assert len(said) == 6
    assert "v2: accuracy" in said[0]
    assert "digits-1.2.0: static, avx2: 0.30 of the size" in said[2]
    assert "How this model was made small" in said[3]
    assert "update on old scales, tau 0.25" in said[4]
    assert "digits@1.2.0 to 2 boards" in said[5]
    assert said[5].rstrip().endswith("2 serving (2 of 2 nodes serve it)")
