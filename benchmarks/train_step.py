r"""Training speed and memory of M2M beside a peer and the machine's limit.

    python3.11 -m venv /tmp/peer
    /tmp/peer/bin/pip install 'tensorflow==2.15.*' deep-rec-kit==1.0.2
    python benchmarks/train_step.py --peer /tmp/peer/bin/python

Everything runs in a process of its own, on the same sizes (the paper's),
batch and threads. The processes take turns, a few steps each; told are
medians of ratios within a turn. The limit is what the machine multiplies
float32 matrices at in the same turn, and the multiplications of our step are
counted in its graph.
"""

import argparse
import json
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH = 256
LOOKBACK, COLUMNS, VOCABULARY = 40, 5, 34
PROFILE, SCENARIO = 4, 4
TASKS = ("pv", "click", "spend", "gmv", "days")
SIZES = {"view_dim": 256, "knowledge_dim": 64, "num_experts": 4}
DEPTHS = {"num_meta_layers": 3, "num_tower_layers": 3}
EMBEDDING = 16
# The peer uses one meta unit for all layers of its tower. With `unit_each` a
# layer has its own, as in the paper's eq. 18 and in ours: the same maths.
PEERS = {
    "deep-rec-kit 1.0.2": {"unit_each": False},
    "deep-rec-kit 1.0.2, a unit for each tower layer": {"unit_each": True},
}
FLOOR = "float32 matrix product"
# Name → settings of training and model beside the sizes. Neither those with
# XLA nor both peers fit into 24 GiB beside the others.
OURS = {
    "m2m_tf": {},
    "m2m_tf, bfloat16": {"dtype_policy": "mixed_bfloat16"},
    "m2m_tf, meta_rank 16": {"meta_rank": 16},
    "m2m_tf, meta_rank 16, bfloat16": {
        "meta_rank": 16,
        "dtype_policy": "mixed_bfloat16",
    },
    "m2m_tf, XLA": {"jit_compile": True},
    "m2m_tf, bfloat16, XLA": {
        "jit_compile": True,
        "dtype_policy": "mixed_bfloat16",
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", help="Python that has the peer installed")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(OURS),
        default=[name for name in OURS if "XLA" not in name],
        metavar="NAME",
        help=f"ours to measure, of {list(OURS)}",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=list(PEERS),
        default=list(PEERS)[1:],
        metavar="NAME",
        help=f"peers to measure if `--peer` is told, of {list(PEERS)}",
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    places = dict.fromkeys((FLOOR, *options.variants), sys.executable)
    if options.peer:
        places |= dict.fromkeys(options.peers, options.peer)
    workers = {name: Worker(name, place) for name, place in places.items()}
    try:
        turns = []
        for number in range(options.turns):
            turns.append({n: worker.ask() for n, worker in workers.items()})
            print(f"turn {number + 1} of {options.turns}", file=sys.stderr)
        memory = {name: worker.end() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.process.kill()
    facts = {name: worker.facts for name, worker in workers.items()}
    text = report(turns, memory, facts)
    print(text)
    if options.output:
        from m2m_tf import files

        files.write_text(options.output, text)


class Worker:
    """A process that answers each line with the seconds of a step."""

    def __init__(self, name, python):
        self.process = subprocess.Popen(
            [python, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        print(f"{name}: ready", file=sys.stderr)

    def ask(self):
        self._write("go")
        return self._read()

    def end(self):
        """Peak memory of the process, GiB."""
        self._write("end")
        return self._read()

    def _write(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("A worker has ended; its error is above.")
        return json.loads(line)


def work(name):
    # Nothing but answers goes to standard output.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    if name == FLOOR:
        step, facts = make_floor()
    elif name in PEERS:
        step, facts = make_peer(**PEERS[name])
    else:
        step, facts = make_ours(**OURS[name])
    step()  # The first one compiles.
    step()
    answer(facts)
    for line in sys.stdin:
        if line.strip() == "end":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer(peak / 2**20)
            return
        repeats, started = 0, time.perf_counter()
        while time.perf_counter() - started < 2:
            step()
            repeats += 1
        answer((time.perf_counter() - started) / repeats)


def make_floor():
    """A product of 2048 x 2048 matrices."""
    import tensorflow as tf

    size = 2048
    values = tf.random.normal((size, size))
    product = tf.function(lambda: tf.matmul(values, values))
    return lambda: product().numpy(), {"flops": 2 * size**3}


def make_ours(
    jit_compile=False,
    dtype_policy="float32",
    meta_rank=None,
    batch=BATCH,
    tasks=TASKS,
    num_experts=SIZES["num_experts"],
):
    import keras
    import tensorflow as tf

    from m2m_tf import losses
    from m2m_tf.data import schema
    from m2m_tf.models import BUILDERS
    from m2m_tf.optimizers import FusedAdam

    keras.config.set_dtype_policy(dtype_policy)
    spec = schema.ModelInputSpec(
        lookback=LOOKBACK,
        horizon=7,
        task_names=tasks,
        behavior_sizes=(VOCABULARY,) * COLUMNS,
        performance_sizes=(VOCABULARY,) * COLUMNS,
        scenario_sizes=(VOCABULARY,) * SCENARIO,
        profile_sizes=(VOCABULARY,) * PROFILE,
        known_future_sizes=(),
        num_dense_features=1,
        num_history_levels=2,
    )
    sizes = SIZES | {"num_experts": num_experts}
    model = BUILDERS["m2m"](
        spec, embedding_dim=EMBEDDING, meta_rank=meta_rank, **sizes, **DEPTHS
    )
    model.compile(
        FusedAdam(1e-4),
        loss=losses.joint_poisson(tasks),
        jit_compile=jit_compile,
    )
    rng = np.random.default_rng(0)
    inputs = {}
    for name, tensor in spec.tensors().items():
        shape = (batch, *tensor.shape)
        if tensor.dtype == "int32":
            inputs[name] = rng.integers(VOCABULARY, size=shape, dtype="int32")
        else:
            inputs[name] = np.ones(shape, tensor.dtype)
    labels = {task: np.ones((batch, 1), "float32") for task in tasks}
    step = fit_one_step(model, inputs, labels, tf)
    traced = tf.function(model.train_step).get_concrete_function(
        tf.nest.map_structure(tf.constant, (inputs, labels))
    )
    return step, {
        "flops": count_flops(traced.graph),
        "parameters": model.count_params(),
    }


def make_peer(unit_each):
    import tensorflow as tf
    from recsys.feature import Field, Task
    from recsys.layers.interaction import MetaUnit
    from recsys.multidomain import m2m as peer

    def column(name, belong, **options):
        return Field(
            name,
            dim=EMBEDDING,
            vocabulary_size=VOCABULARY,
            belong=belong,
            **options,
        )

    fields = [
        column(f"{group}{index}", "history", group=group, length=LOOKBACK)
        for group in ("behavior", "performance")
        for index in range(COLUMNS)
    ]
    fields += [column(f"profile{i}", "user") for i in range(PROFILE)]
    fields += [column(f"scenario{i}", "domain") for i in range(SCENARIO)]
    fields += [column(f"id_{task}", "task", group=task) for task in TASKS]
    if unit_each:
        # One for each layer, the same for all tasks.
        units = [
            MetaUnit(DEPTHS["num_meta_layers"])
            for _ in range(DEPTHS["num_tower_layers"])
        ]

        class Tower(peer.MetaTower):
            def __init__(self, **options):
                super().__init__(**options)
                self.layers = units

        peer.MetaTower = Tower
    model = peer.m2m(
        fields,
        [Task(task, belong="regression") for task in TASKS],
        SIZES["num_experts"],
        view_dim=SIZES["view_dim"],
        scenario_dim=SIZES["knowledge_dim"],
        meta_tower_depth=DEPTHS["num_tower_layers"],
        meta_unit_depth=DEPTHS["num_meta_layers"],
        agg_kwargs={"position_merge": "concat"},
    )
    model.compile(tf.keras.optimizers.Adam(1e-4), loss="mse")
    rng = np.random.default_rng(0)
    inputs = {
        field.name: rng.integers(
            1,
            VOCABULARY,
            size=(BATCH, LOOKBACK) if field.belong == "history" else BATCH,
            dtype="int32",
        )
        for field in fields
    }
    labels = {task: np.ones((BATCH, 1), "float32") for task in TASKS}
    step = fit_one_step(model, inputs, labels, tf)
    return step, {"parameters": model.count_params()}


def fit_one_step(model, inputs, labels, tf):
    """A step as `fit` takes it, on one batch again and again."""
    batches = iter(tf.data.Dataset.from_tensors((inputs, labels)).repeat())
    model.make_train_function()
    function = model.train_function

    def step():
        return {name: float(x) for name, x in function(batches).items()}

    return step


def count_flops(graph):
    """Multiplications and additions of all matrix products of a graph."""
    total = 0
    for operation in graph.get_operations():
        kind = operation.type
        if kind in ("PartitionedCall", "StatefulPartitionedCall"):
            name = operation.get_attr("f").name
            total += count_flops(graph._get_function(name).graph)
        elif kind == "Einsum":
            terms = operation.get_attr("equation").decode().split("->")[0]
            sizes = {}
            for term, tensor in zip(terms.split(","), operation.inputs):
                sizes |= dict(zip(term, tensor.shape, strict=True))
            total += 2 * np.prod(list(sizes.values()), dtype=float)
        elif kind in ("MatMul", "BatchMatMulV2", "BatchMatMulV3"):
            transposed = operation.get_attr(
                "transpose_a" if kind == "MatMul" else "adj_x"
            )
            inner = operation.inputs[0].shape[-2 if transposed else -1]
            shape = [*operation.outputs[0].shape, inner]
            total += 2 * np.prod(shape, dtype=float)
    return total


def report(turns, memory, facts):
    from m2m_tf import __version__

    def seconds(name):
        return np.array([turn[name] for turn in turns])

    speed = facts[FLOOR]["flops"] / seconds(FLOOR)
    peers = [name for name in facts if name in PEERS]
    lines = [
        "# Speed of a training step",
        "",
        f"`{command()}`, m2m_tf {__version__}, {os.cpu_count()} cores with "
        f"{', '.join(instructions())}. The paper's "
        f"sizes: {SIZES}, {DEPTHS}, embeddings of {EMBEDDING}, two sequences "
        f"of {LOOKBACK} days and {COLUMNS} columns, {len(TASKS)} tasks, "
        f"batches of {BATCH}. Medians over turns, in which the processes "
        f"alternate; a {FLOOR} ran at {np.median(speed) / 1e9:.0f} GFLOP/s. "
        "The time of the same products is that in float32, for bfloat16 too.",
        "",
        "| | samples/s | "
        + "".join(f"times {name} | " for name in peers)
        + "time / time of the same matrix products | GFLOP a step | peak "
        "memory, GiB | parameters, million |",
        "|---|" + "---:|" * (5 + len(peers)),
    ]
    for name, known in facts.items():
        if name == FLOOR:
            continue
        own = seconds(name)
        times = [f"{np.median(seconds(peer) / own):.1f}" for peer in peers]
        floor = flops = "-"
        if "flops" in known:
            floor = f"{np.median(own * speed / known['flops']):.2f}"
            flops = f"{known['flops'] / 1e9:.1f}"
        cells = [
            name,
            f"{BATCH / np.median(own):.1f}",
            *times,
            floor,
            flops,
            f"{memory[name]:.2f}",
            f"{known['parameters'] / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def command():
    """What was run, with the one variable that changes what is measured."""
    script = f"benchmarks/{pathlib.Path(sys.argv[0]).name}"
    words = ["python", script, *sys.argv[1:]]
    variable = "TF_ENABLE_ONEDNN_OPTS"
    if variable in os.environ:
        words.insert(0, f"{variable}={os.environ[variable]}")
    return shlex.join(words)


def instructions():
    """The processor's vector instructions that matrix products use."""
    known = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    kinds = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return [kind for kind in kinds if kind in known]


if __name__ == "__main__":
    main()
