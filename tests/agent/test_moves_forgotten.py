"""What an instance still holds of moves that are over, while the garbage collector does nothing."""

import asyncio
import gc
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llx.agent.endpoint import InstanceEndpoint
from llx.agent.engine_codec import encode
from llx.agent.llumlet import EngineFacts, MigrationService
from llx.agent.llumlet.incoming import Incoming
from llx.agent.llumlet.outgoing import Outgoing
from llx.agent.sim_core import UTILITIES
from llx.agent.sim_engine import instance_info, make_engine, ready_response
from llx.agent.sim_model import read_model
from llx.agent.transport.instance import InstanceTransport
from llx.agent.transport.rank import RankAgent
from llx.agent.transport.source import SourceLink
from llx.agent.transport.target import TargetConnection
from llx.core.migration.events import CommitAsked
from llx.core.migration.source import Source
from llx.core.migration.target import Target
from llx.core.model import InstanceId, PoolName
from llx.curve import ClusterKeys
from llx.specs import EngineKind, InstanceSpec, SimSpec
from llx.wire import Member
from tests.gpu.two_instances import Arbiter

SIM = SimSpec(step_base_ms=30.0, num_blocks=128, max_num_seqs=8, max_num_batched_tokens=256)
NUM_MOVES = 12
TYPES = (
    Outgoing, Source, Incoming, Target, CommitAsked, SourceLink, TargetConnection,
)  # fmt: skip


class Place:
    """A simulated instance on threads of this process."""

    def __init__(self, name: str, model: Path, keys: ClusterKeys) -> None:
        spec = InstanceSpec(
            name=name, pool="m", engine=EngineKind.SIM, model=str(model), engine_args={},
            tensor_parallel=1, bind_host="127.0.0.1", keys_path="", status_path="", sim=SIM,
        )  # fmt: skip
        facts = read_model(spec.model, spec.engine_args)
        self._engine, config = make_engine(SIM, facts)
        info = instance_info(spec, config, facts)
        self._llumlet = MigrationService(
            keys,
            PoolName("m"),
            EngineFacts(
                InstanceId(name), info.compatibility, config.block_size, config.max_model_len
            ),
            spec.migration,
            self._engine.moves,
            self._engine,
        )
        rank = RankAgent(self._engine.kv, spec.migration, spec.bind_host)
        self._transport = InstanceTransport([rank], self._llumlet)
        self._endpoint = InstanceEndpoint(
            keys,
            spec.bind_host,
            info=info,
            engine_ready=encode(ready_response(config, dtype=facts.dtype, name=name)),
            sink=self._engine,
            llumlet=self._llumlet,
            allowed_calls=UTILITIES,
        )
        self._llumlet.start(self._endpoint, self._transport)
        self._core = threading.Thread(target=self._engine.run, args=(self._endpoint,))
        addresses = self._endpoint.start()
        self._core.start()
        self.member = Member(InstanceId(name), PoolName("m"), *addresses)

    def close(self) -> None:
        self._engine.stop()
        self._core.join()
        self._llumlet.close()
        self._transport.stop()
        self._endpoint.close("stopped")


@pytest.fixture
def keys() -> ClusterKeys:
    return ClusterKeys.create()


@pytest.fixture
def members(tmp_path: Path, keys: ClusterKeys) -> Iterator[list[Member]]:
    config = {"vocab_size": 768, "max_position_embeddings": 1024, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    places = [Place(name, tmp_path, keys) for name in "ab"]
    yield [each.member for each in places]
    for each in places:
        each.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Full collections are so rare that what waits for them is as good as kept."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def move_to_and_fro(keys: ClusterKeys, members: list[Member]) -> Counter[type]:
    """Move a request again and again; returns what there is more once the last move has settled."""
    before = held()
    arbiter = Arbiter(keys, members)
    await arbiter.open()
    request = arbiter.add([7] * 40, 900, "a", None)
    for _ in range(NUM_MOVES):
        await arbiter.wait(request, len(arbiter.streams[request].tokens) + 1)
        news = await arbiter.move(request)
        assert news.outcome == "moved", news
    await arbiter.until(
        lambda: not (held() - before).keys() & {Outgoing, SourceLink, TargetConnection},
        "nothing of a move is under way",
    )
    found = held() - before
    await arbiter.close()
    return found


def held() -> Counter[type]:
    return Counter(type(each) for each in gc.get_objects() if type(each) in TYPES)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.slow
def test_of_a_move_that_is_over_only_the_target_remembers_and_no_tokens(
    keys: ClusterKeys, members: list[Member]
) -> None:
    found = asyncio.run(move_to_and_fro(keys, members))
    assert found == {Incoming: NUM_MOVES, Target: NUM_MOVES}
