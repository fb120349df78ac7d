"""What groups of a simulated broker do: commit offsets, look at them, and are deleted."""

from __future__ import annotations

__all__ = ("Groups",)

from tests.simulation.history import History, Life
from tests.simulation.model import GROUPS, NAMES, Committed

from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import OffsetAndMetadata, TopicPartition
from penstock.wire.error_codes import ErrorCode


class Groups(History):
    """Steps of groups. An offset that is found is the newest that is certain, or a later one."""

    async def _use_group(self, life: Life, group_id: str) -> None:
        await self._turns(self._groups_random.randrange(30))
        chance = self._groups_random.random()
        if chance < 0.5:
            await self._commit(life, group_id)
        elif chance < 0.55:
            await self._delete_group(life, group_id)
        elif chance < 0.8:
            await self._check_group(life, group_id)

    async def _commit(self, life: Life, group_id: str) -> None:
        self._commits += 1
        number = self._commits
        topics = sorted(name for name in life.logs.topics() if name in NAMES)
        if not topics:
            return
        name = self._groups_random.choice(topics)
        places = [(name, index) for index in range(self._groups_random.randrange(1, 3))]
        known = [self._known(life, group_id, place) for place in places]
        topic_id = known[0].topic_id
        begun = [one.begin(number) for one in known]
        errors = await self._perhaps_cancelled(
            lambda: life.groups.commit_offsets(
                group_id, {place: OffsetAndMetadata(number) for place in places}
            )
        )
        if not self._is_certain(life, places[0], topic_id):
            for one in known:
                one.begin(None)
            return
        for place, one, at in zip(places, known, begun, strict=True):
            if errors is not None and errors[place] == 0:
                self.note(f"committed {group_id} {name} {number}")
                one.settle(at, self._offsets_of(life, group_id).high_watermark)

    async def _delete_group(self, life: Life, group_id: str) -> None:
        known = [one for (group, _), one in self.committed.items() if group == group_id]
        begun = [one.begin(None) for one in known]
        errors = await self._perhaps_cancelled(lambda: life.groups.delete_groups([group_id]))
        if errors == {group_id: ErrorCode.NONE}:
            self.note(f"deleted group {group_id}")
            for one, at in zip(known, begun, strict=True):
                one.settle(at, self._offsets_of(life, group_id).high_watermark)

    async def _check_group(self, life: Life, group_id: str) -> None:
        places = [place for group, place in self.committed if group == group_id]
        known = [self._known(life, group_id, place) for place in places]
        topic_ids = [one.topic_id for one in known]
        allowed = [one.allowed() for one in known]
        error, offsets = await life.groups.fetch_offsets(group_id, places)
        if error is not ErrorCode.NONE:
            return
        for place, one, topic_id, may_be in zip(places, known, topic_ids, allowed, strict=True):
            found = offsets[place]
            value = None if found is None else found.offset
            if self._is_certain(life, place, topic_id) and one.topic_id == topic_id:
                assert value in may_be | one.allowed(), (group_id, place, value, one)

    async def _check_groups(self, life: Life) -> None:
        await life.groups.wait_loaded()
        for group_id in GROUPS:
            await self._check_group(life, group_id)

    def _not_forgotten(self, groups: GroupService) -> set[str]:
        return {*groups._unforgotten, *groups._made_meanwhile}

    def _known(self, life: Life, group_id: str, place: TopicPartition) -> Committed:
        """What is known of the offset; of a topic that is new, that there is none."""
        topic = life.logs.topics().get(place[0])
        topic_id = b"" if topic is None else topic.id
        known = self.committed.setdefault((group_id, place), Committed(topic_id))
        if known.topic_id != topic_id:
            is_open = place[0] in self.unforgotten | self._not_forgotten(life.groups)
            known.topic_id = topic_id
            none = known.begin(None)
            if not is_open:
                known.settle(none)
        return known

    def _is_certain(self, life: Life, place: TopicPartition, topic_id: bytes) -> bool:
        topic = life.logs.topics().get(place[0])
        return topic is not None and topic.id == topic_id and topic.id not in self.doomed
