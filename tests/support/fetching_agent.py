"""A board that fetches one blob from a web server, until it is killed. Usage: fetching_agent.py FOLDER REF ADDRESS"""

import asyncio
import json
import sys
from pathlib import Path

from shoal_agent.allowance import Allowance
from shoal_agent.arriving import Arriving
from shoal_agent.files import ContentStore
from shoal_agent.sources.port import pull
from shoal_agent.sources.web import Web
from shoal_contract.messages import BlobRef


def main() -> None:
    folder, ref_file, address = sys.argv[1:]
    digest, size_bytes, chunk_bytes, chunk_digests = json.loads(Path(ref_file).read_text())
    ref = BlobRef(bytes.fromhex(digest), size_bytes, chunk_bytes, bytes.fromhex(chunk_digests))
    arriving = Arriving(ref, ContentStore(Path(folder)).part(ref.digest))
    source = Web([address], None)
    asyncio.run(pull(source, arriving, allowance=Allowance(), count=lambda _: None, progress=None))


main()
