"""What the releases of the catalogue require, read from their release.toml and remembered."""

from shoal_contract.requirements import Requirement, parse_requirements
from shoal_fleet.dependencies import Needs, circle
from shoal_fleet.errors import ConflictError
from shoal_fleet.releases import Release, Releases


class ReleaseNeeds:
    """Asks the catalogue. A release never changes, so each is read once."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self._known: dict[bytes, tuple[Requirement, ...]] = {}

    async def of(self, release: Release) -> tuple[Requirement, ...]:
        """What a board must serve before it is offered this release.

        Raises:
            StateError: the release's file cannot be read any more.
        """
        if release.id not in self._known:
            spec = await self._releases.spec(release)
            self._known[release.id] = parse_requirements(spec.requires)
        return self._known[release.id]

    async def check(self, release: Release) -> tuple[Requirement, ...]:
        """The same, when the release can ever go out.

        Raises:
            ConflictError: it waits for a release that waits for it.
            StateError: a release's file cannot be read any more.
        """
        requires = await self.of(release)
        if requires:
            catalogue = [
                Needs(item.name, item.version, await self.of(item))
                for item in await self._releases.list_all()
            ]
            found = circle(Needs(release.name, release.version, requires), catalogue)
            if found:
                raise ConflictError(f"releases wait for each other: {' -> '.join(found)}")
        return requires
