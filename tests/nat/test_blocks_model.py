"""Blocks and ports against a twin of dictionaries that knows the rules but not the tables."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from egressvpn.nat.blocks import hold_block
from egressvpn.nat.tables import BLOCK_FREE, BLOCK_HELD, BLOCK_OWNED
from egressvpn.verdict import Verdict
from tests.nat.block_support import Pools, Port, ns

HOLD_DOWN = 120  # s
Key = tuple[int, int]  # pool slot, number of a block; or pool slot, port


class Blocks(RuleBasedStateMachine):
    """Random operations against dictionaries that know the rules but not the tables. Which of several allowed ports or blocks is drawn, the
    kernels say; that it was allowed, the twin checks. When a hold that is over ends is the kernels' choice, too."""

    @initialize(
        size=st.integers(2, 9),
        width=st.integers(20, 30),
        most=st.integers(1, 3),
        addresses=st.integers(1, 3),
        fixed=st.integers(0, 2),
        key=st.integers(0, 2**60),
    )
    def begin(self, size: int, width: int, most: int, addresses: int, fixed: int, key: int) -> None:
        self.pools = Pools(
            addresses=addresses, devices=4, low=1025, high=1025 + width, size=size, most=most, key=key, fixed_blocks=fixed, fixed_size=3
        )
        self.now, self.most, self.fixed, self.size = 0.0, most, fixed, size
        self.dynamic = (width + 1 - 3 * fixed) // size
        self.blocks: dict[Key, dict[str, Any]] = {}  # those that are not free
        self.slots = list(range(1, addresses + 1))
        self.paired = {device: 1 + (device - 1) % addresses for device in range(1, 5)}
        self.identity = {device: 1000 + device for device in range(1, 5)}
        self.number = dict.fromkeys(range(1, 5), 0)
        if fixed:
            self.pools.subscribe(1, 1001, 1, fixed=1)
            self.number[1] = 1

    @rule(device=st.integers(1, 4), kind=st.integers(0, 2), internal_port=st.integers(0, 1))
    def take(self, device: int, kind: int, internal_port: int) -> None:
        allowed = self.allowed(device, kind, internal_port)
        taken = self.pools.take(device, kind, internal_port, self.now)
        self.notice_releases()
        if not isinstance(taken, tuple):
            assert allowed == taken
            return
        slot, _, port = taken
        assert isinstance(allowed, set)
        assert (slot, port) in allowed
        key = self.block_of(slot, port)
        if self.blocks.get(key, {}).get("state") != BLOCK_OWNED:
            self.blocks.pop(key, None)
            self.blocks[key] = {"state": BLOCK_OWNED, "device": device, "identity": self.identity[device]}
        self.paired[device] = slot

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.pools.owners:
            self.give_back(data.draw(st.sampled_from(sorted(self.pools.owners))))

    @rule(device=st.integers(1, 4), count=st.integers(1, 12))
    def take_many(self, device: int, count: int) -> None:
        for _ in range(count):
            self.take(device, 0, count)

    @rule(device=st.integers(1, 4))
    def free_many(self, device: int) -> None:
        for port in [port for port, owner in self.pools.owners.items() if owner == device]:
            self.give_back(port)

    @rule(seconds=st.sampled_from([0.5, 30.0, 60.0, 119.5, 120.0]), sweep=st.booleans())
    def wait(self, seconds: float, sweep: bool) -> None:
        self.now += seconds
        if sweep:
            self.pools.expire(self.now)
            self.notice_releases()

    @rule(device=st.integers(1, 4), identity=st.integers(1001, 1006), held=st.integers(0, 1), data=st.data())
    def replace(self, device: int, identity: int, held: int, data: st.DataObject) -> None:
        """The device goes, and this or another one comes into its slot."""
        self.free_many(device)
        self.pools.remove(device, self.now, held)
        for key, block in list(self.blocks.items()):
            if block["device"] == device:
                if block["state"] == BLOCK_OWNED:
                    self.hold(key, block)
                block["device"] = 0
                if not held:
                    self.blocks.pop(key, None)
        if identity not in self.identity.values() or self.identity[device] == identity:
            self.identity[device] = identity
        self.number[device] = data.draw(st.integers(0, self.fixed)) if device == 1 else 0
        self.paired[device] = data.draw(st.sampled_from(self.slots))
        self.pools.subscribe(device, self.identity[device], self.paired[device], self.number[device])

    @rule(port=st.integers(1020, 1060), identity=st.integers(1001, 1006), until=st.sampled_from([0.0, 50.0, 120.0]), data=st.data())
    def hold_after_restart(self, port: int, identity: int, until: float, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.slots))
        key = self.block_of(slot, port)
        expected = key[1] >= 0 and key not in self.blocks
        assert hold_block(self.pools.nat, slot, port, identity, ns(self.now + until)) == expected
        if expected:
            self.blocks[key] = {"state": BLOCK_HELD, "device": 0, "identity": identity, "until": self.now + until}

    @rule()
    def crash(self) -> None:
        self.pools.crash(self.now)
        for key, block in self.blocks.items():
            if block["state"] == BLOCK_OWNED and not any(self.block_of(s, p) == key for s, _, p in self.pools.owners):
                self.hold(key, block)

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "pools"):
            return
        self.pools.assert_whole()
        nat, stride = self.pools.nat, self.pools.nat.blocks.size // self.pools.nat.pool.size
        seen = {}
        for row in range(stride, nat.blocks.size):
            block = nat.blocks[row]
            if block.state != BLOCK_FREE:
                seen[row // stride, row % stride] = (int(block.state), int(block.owner), int(block.identity))
        assert seen == {key: (block["state"], block["device"], block["identity"]) for key, block in self.blocks.items()}
        for device in range(1, 5):
            assert nat.subscribers[device].external4 == self.paired[device]
            assert sum(b["device"] == device and k[1] >= self.fixed for k, b in self.blocks.items()) <= self.most

    def allowed(self, device: int, kind: int, internal_port: int) -> set[Key] | Verdict:
        """The ports that the device may be given now, or the verdict."""
        slot, identity = self.paired[device], self.identity[device]
        own = {key: block for key, block in self.blocks.items() if block["device"] == device}
        predefined = (slot, self.number[device] - 1) if self.number[device] else None
        unused = {key: self.unused(key, kind) for key, block in own.items() if block["state"] == BLOCK_OWNED}
        if unused.get(predefined):
            return alike(unused[predefined], internal_port)
        if any(unused.values()):
            return alike(set().union(*unused.values()), internal_port)
        if predefined and predefined not in unused:
            block = self.blocks.get(predefined)
            if block is None or (block["state"] == BLOCK_HELD and (block["identity"] == identity or block["until"] <= self.now)):
                return alike(self.unused(predefined, kind), internal_port)
        held = [key for key, block in own.items() if block["state"] == BLOCK_HELD]
        if held:
            return self.any_of(held, kind, internal_port)
        if sum(key[1] >= self.fixed for key in own) >= self.most:
            return Verdict.QUOTA_EXCEEDED
        may_move = not own and not predefined
        orphans = [k for k, b in self.blocks.items() if b["device"] == 0 and b["identity"] == identity and k[1] >= self.fixed]
        orphans = [key for key in orphans if key[0] == slot or may_move]
        if orphans:
            return self.any_of(orphans, kind, internal_port)
        for slots in ([slot], self.slots if may_move else []):
            candidates = [key for s in slots for key in self.available(s)]
            if candidates:
                return self.any_of(candidates, kind, internal_port)
        return Verdict.PORTS_EXHAUSTED

    def available(self, slot: int) -> list[Key]:
        """Free blocks of an address, and those whose hold is over."""
        keys = [(slot, number) for number in range(self.fixed, self.fixed + self.dynamic)]
        return [key for key in keys if key not in self.blocks or self.blocks[key].get("until", self.now + 1) <= self.now]

    def any_of(self, keys: list[Key], kind: int, internal_port: int) -> set[Key]:
        return set().union(*(alike(self.unused(key, kind), internal_port) for key in keys))

    def unused(self, key: Key, kind: int) -> set[Key]:
        slot, number = key
        low = 1025 + 3 * number if number < self.fixed else 1025 + 3 * self.fixed + (number - self.fixed) * self.size
        width = 3 if number < self.fixed else self.size
        return {(slot, port) for port in range(low, low + width) if (slot, kind, port) not in self.pools.owners}

    def block_of(self, slot: int, port: int) -> Key:
        for number in range(self.fixed + self.dynamic):
            low = 1025 + 3 * number if number < self.fixed else 1025 + 3 * self.fixed + (number - self.fixed) * self.size
            if low <= port < low + (3 if number < self.fixed else self.size):
                return slot, number
        return slot, -1

    def give_back(self, port: Port) -> None:
        self.pools.free(port, self.now)
        key = self.block_of(port[0], port[2])
        if key[1] >= self.fixed and not any(self.block_of(s, p) == key for s, _, p in self.pools.owners):
            self.hold(key, self.blocks[key])

    def hold(self, key: Key, block: dict[str, Any]) -> None:
        block.update(state=BLOCK_HELD, until=self.now + HOLD_DOWN)

    def notice_releases(self) -> None:
        """Holds that the kernels have ended: only those that are over."""
        for key, block in list(self.blocks.items()):
            now_free = self.pools.nat.blocks[self.pools.row(*key)].identity != block["identity"]
            if block["state"] == BLOCK_HELD and now_free:
                assert block["until"] <= self.now
                self.blocks.pop(key, None)


def alike(ports: set[Key], internal_port: int) -> set[Key]:
    """Those of the internal port's parity, or all when there is none."""
    return {port for port in ports if (port[1] ^ internal_port) & 1 == 0} or ports


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
