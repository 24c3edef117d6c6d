"""`geo`, the one command line; a command imports what it needs, so that help comes at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Key-point control of generative engines."
)
slurm = typer.Typer(no_args_is_help=True, help="A notebook over a grid as one SLURM array.")
models = typer.Typer(no_args_is_help=True, help="The models that parameters can name.")
labels = typer.Typer(
    no_args_is_help=True,
    help=(
        "Hand labels, which the judge is held to: `export` a sheet of answers; two readers each "
        "fill a copy and say in its first line what they are; `import` both; then run 02 or 03 "
        "with labels=FILE."
    ),
)
cold_start = typer.Typer(no_args_is_help=True, help="The supervised steps before a training.")
app.add_typer(slurm, name="slurm")
app.add_typer(models, name="models")
app.add_typer(labels, name="labels")
app.add_typer(cold_start, name="cold-start")

Notebook = Annotated[str, typer.Argument(help="its number, such as 03, or its name")]
File = Annotated[str, typer.Argument(help="a file in params/<notebook>/, by name, or a path")]
Sets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME=VALUE", help='over the file\'s; NAME.ENTRY, NAME."A.B" set one of a mapping'
    ),
]
Root = Annotated[str, typer.Option(help="folder of the runs")]
Array = Annotated[str | None, typer.Argument(help="name, job id or folder; default, the newest")]


@contextlib.contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """End with status 2 and the words of what cannot be used, where that is an error of a kind."""
    found: tuple[type[Exception], ...] = (ValueError, OSError, *kinds)
    try:
        yield
    except found as error:  # OSError: a full disk, or a run that is held
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


def pairs(sets: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return name and value of each `NAME=VALUE`."""
    found = []
    for text in sets or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{text!r}: write NAME=VALUE, such as repeats=3")
        found.append((name, value))
    return found


def _say(*lines: object) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


@app.command()
def run(
    notebook: Notebook,
    params: File = "default",
    sets: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="count calls, tokens and cost; spend nothing")
    ] = False,
) -> None:
    """Run a notebook headless: parameters checked, executed in its run folder, reported."""
    _run(notebook, params, [*(sets or ()), *["dry_run=true"] * dry_run])


@app.command()
def weekly(sets: Sets = None) -> None:
    """Make the meeting's deck from the newest finished runs."""
    _run("05", "default", sets)


def _run(notebook: str, file: str, sets: Sequence[str] | None) -> None:
    from geo_utils.notebooks import execute, read_parameters

    with refusals():
        name, values, params = read_parameters(notebook, file, pairs(sets))
        _check_corpus(params)
    raise typer.Exit(execute(name, values, params, _rendered))


def _check_corpus(params: Any) -> None:
    """Refuse a file of rows that cannot be read, before a run folder is made."""
    corpus = getattr(params, "corpus", None)
    if corpus and corpus.name == "jsonl" and not Path(params.corpus_options["path"]).is_dir():
        from geo_utils.corpus import load_corpus

        load_corpus(**params.corpus_options)


def _rendered(executed: Path) -> None:
    """Write report and slides of an executed notebook, if it is one, and the page of all runs."""
    from geo_utils.files import from_root
    from geo_utils.notebooks import tell
    from geo_utils.runs import Run
    from geo_utils.show.pages import write_index

    folder = executed if executed.is_dir() else executed.parent
    try:
        if executed.is_file():
            from geo_utils.show.report import render_report

            for name, path in render_report(executed, Run(folder).manifest).items():
                told = from_root(path) if isinstance(path, Path) else path
                tell(f"{name}: {told}", sys.stdout)
        write_index(folder.parents[2])
    except Exception as error:  # the run's results stand whether or not they could be rendered
        tell(f"  report, slides or the page of runs could not be written: {error}")


@app.command("try")
def try_own(
    page: Annotated[Path, typer.Option(help="file with the text of your page")],
    key_point: Annotated[str, typer.Option(help="the claim of it that answers should carry")],
    sets: Sets = None,
    query: Annotated[str, typer.Option(help="the question; default, the page's title")] = "",
    other: Annotated[
        list[Path] | None, typer.Option(help="file with another page that the engine sees")
    ] = None,
    method: Annotated[str, typer.Option(help="how it is rewritten")] = "key_point",
    engine: Annotated[str, typer.Option(help="such as gemini/gemini-3.1-flash-lite")] = "",
    rewriter: Annotated[str, typer.Option(help="default, the engine")] = "",
    judge: Annotated[str, typer.Option(help="default, the file's")] = "",
    params: Annotated[str, typer.Option(help="a file in params/03_key_point_prompt/")] = "default",
    repeats: Annotated[int, typer.Option(min=1, help="answers before and after")] = 1,
    out: Annotated[Path, typer.Option(help="gets the page that shows it")] = Path("try.html"),
) -> None:
    """Try a page of your own: rewrite it, ask before and after, and judge both."""
    from geo_utils.corpus import own_example
    from geo_utils.models.base import FatalError, ModelError
    from geo_utils.notebooks import read_parameters
    from geo_utils.roles.make import make_roles
    from geo_utils.runs import RunInterrupted
    from geo_utils.show.example import changing_method, try_page, write_trial

    with refusals(FatalError, ModelError, RunInterrupted):
        others = [path.read_text(encoding="utf-8") for path in other or ()]
        example = own_example(page.read_text(encoding="utf-8"), key_point, query, others)
        asked = {"engine": engine, "rewriter": rewriter or engine, "judge": judge}
        asked |= {"method": changing_method(method), "studies": "{}"}
        given = [("baseline_methods", "[original]"), *((k, v) for k, v in asked.items() if v)]
        given += pairs(sets)
        roles = make_roles(read_parameters("03", params, given)[2])  # type: ignore[arg-type]
        trial = try_page(roles, example, method, repeats)
        write_trial(trial, out)
    _say(f"Query: {example.query}", *trial.findings, out)


@app.command("record")
def make_record(
    folder: Annotated[Path, typer.Argument(help="gets the record; one that lies there goes")],
    sets: Sets = None,
    about: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="to be said of it, such as gpu")
    ] = None,
) -> None:
    """Ask a model anew all that 03 and 02 `recorded` need, and keep its answers as a record."""
    import shutil
    import time

    from geo_utils.models.record import write_record
    from geo_utils.notebooks import execute, read_parameters
    from geo_utils.runs import locate_run, package_versions

    asked = Path(f"{folder.resolve()}.cache")  # beside it until all is there: it can be gone on
    said: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "versions": package_versions()}
    with refusals():
        given = [*pairs(sets), ("record", "null"), ("paths.cache", str(asked))]
        said |= dict(pairs(about)) | {"templates": {}}
        ledgers: list[Path] = []
        for notebook in ("03", "02"):
            name, values, params = read_parameters(notebook, "recorded", given)
            if code := execute(name, values, params, _rendered):
                raise typer.Exit(code)
            made = locate_run(name, params)
            said["templates"] |= made.manifest["templates"]
            ledgers.append(made.folder / "usage.jsonl")
        written = write_record(asked, folder, said, ledgers)
    shutil.rmtree(asked)
    _say(*(f"{path}: {path.stat().st_size:,} bytes" for path in written))


@app.command()
def params(notebook: Notebook) -> None:
    """List every parameter of a notebook: name, type, default, meaning."""
    from geo_utils.files import project_root
    from geo_utils.notebooks import notebook_name, params_class
    from geo_utils.parameters import default_parameters, described

    with refusals():
        name = notebook_name(notebook)
        defaults = default_parameters(project_root() / "notebooks" / f"{name}.ipynb")
        _say(*described(params_class(name), defaults))


@app.command()
def runs(
    compare: Annotated[
        list[str] | None, typer.Option(help="a run folder or id; give it twice or more")
    ] = None,
    root: Root = "outputs",
    newest: Annotated[int, typer.Option(help="how many to list")] = 12,
) -> None:
    """List the runs and write their page; or those to compare, side by side."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from geo_utils.files import from_root, resolve_path
    from geo_utils.records import conclusion, find_records, named_records
    from geo_utils.show.pages import write_comparison, write_index

    place = resolve_path(root)
    with refusals():
        if not place.is_dir():
            raise ValueError(f"{place}: no such folder; run a notebook first, or name --root")
        records = find_records(place)
        if compare:
            _say(from_root(write_comparison(named_records(compare, records), place)))
            return
        table = Table("run", "status", "result", box=None, pad_edge=False)
        table.columns[0].no_wrap = True
        for record in records[-newest:]:
            said = conclusion(record) or record.reason or ""
            table.add_row(*map(escape, (str(record), record.status, said)))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        _say(from_root(write_index(place)))


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="run folder or executed .ipynb")],
    pdf: Annotated[bool, typer.Option("--pdf", help="print the slides, too")] = False,
) -> None:
    """Render a run's report and slides anew."""
    from geo_utils.runs import Run
    from geo_utils.show.report import render_report

    notebook = path / "notebook.ipynb" if path.is_dir() else path
    with refusals():
        if not notebook.is_file():
            raise ValueError(f"{notebook}: no such notebook; give a run folder or an .ipynb")
        try:
            written = render_report(notebook, Run(notebook.parent).manifest, pdf)
        except Exception as error:  # the parser's and the exporters' errors are of many kinds
            said = f"{notebook} cannot be rendered: {type(error).__name__}: {error}"[:500]
            raise ValueError(said) from None
        _say(*written.values())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder of notebook 02, 03 or 04")],
    inspect: Annotated[
        bool, typer.Option("--inspect", help="as a log that `inspect view` opens")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="default, samples.eval in the folder")] = None,
) -> None:
    """Write a run's samples in another form than samples.parquet."""
    from geo_utils.inspect_log import write_inspect_log
    from geo_utils.records import Record

    path = out or run / "samples.eval"
    with refusals():
        if not inspect:
            raise ValueError("name the form: --inspect writes a log of inspect_ai")
        count = write_inspect_log(Record(run.resolve()), path)
    _say(f"{count:,} samples: {path}")


@app.command()
def check(file: Path) -> None:
    """Say what a corpus file holds, or the first line and field that cannot be read."""
    from geo_utils.corpus import load_corpus

    with refusals():
        corpus = load_corpus("jsonl", path=file)
        counts = sorted({len(example.sources) for example in corpus})
        words = sorted(len(page.split()) for example in corpus for page in example.sources)
        _say(corpus, f"sources a query: {counts[0]} to {counts[-1]}")
        _say(f"words a page: {words[0]} to {words[-1]}, median {words[len(words) // 2]}")


@models.command("check")
def check_model(
    model: Annotated[str, typer.Argument(help="such as gemini/gemini-3.1-flash-lite")],
    server: Annotated[list[str] | None, typer.Option(help="an address of it")] = None,
) -> None:
    """Ask a model one word: does it answer, as whom, and what does it cost?"""
    from geo_utils.models.base import FatalError, ModelError, Request, Sampling
    from geo_utils.models.known import AS_OF, retirement
    from geo_utils.models.local import entailment_prompt
    from geo_utils.models.loops import run_sync
    from geo_utils.models.usage import price_of
    from geo_utils.roles.make import make_model
    from geo_utils.roles.params import ModelName, read_addresses

    with refusals(FatalError, ModelError):
        name = ModelName.read(model)
        if name.backend == "offline":
            raise ValueError("offline: no model is asked, nothing is to be checked")
        made = make_model(name, tuple(read_addresses(server)) if server else ())
        prompt = "Answer with the one word: ready"
        if name.backend == "entailment":
            prompt = entailment_prompt("The tide rises twice a day.", "The tide rises.")

        async def ask() -> Any:
            request = Request("engine", prompt, sampling=Sampling(None, 64))
            try:
                await made.probe()
                return await made.complete(request)
            finally:
                await made.close()

        found, price = run_sync(ask()), price_of(name.id)
    cost = f"{price.cost(found.tokens_in, found.tokens_out):.7f} US dollars" if price else "unknown"
    _say(f"{model} answers as {found.served_by or 'it does not say whom'}: {found.text.strip()!r}")
    _say(f"{found.tokens_in} tokens in, {found.tokens_out} out, {found.latency_s:.2f} s")
    _say(f"cost: {cost} (prices as of {AS_OF})")
    if note := retirement(name.id):
        _say(note)


@labels.command("export")
def export_labels(
    run: Annotated[Path, typer.Argument(help="a run folder of notebook 02, 03 or 04")],
    file: Annotated[Path, typer.Argument(help="the sheet; each reader fills a copy")],
    each: Annotated[int, typer.Option(min=1, help="answers of each arm")] = 80,
    seed: int = 0,
) -> None:
    """Draw answers for two readers, who see neither method nor verdict."""
    import pandas as pd

    from geo_utils import certificate
    from geo_utils.files import write_atomic
    from geo_utils.records import Record

    with refusals():
        record, key = Record(run.resolve()), file.with_suffix(".key.jsonl")
        for path in (file, key):
            if path.exists():
                raise ValueError(f"{path} is there already, and may hold labels; name another file")
        samples = pd.read_parquet(run / "samples.parquet")
        about = {"run": str(record), "source": record.provenance}
        sheet, answers = certificate.export_labels(samples, about, each, seed)
        for path, text in ((file, sheet), (key, answers)):
            write_atomic(path, text)
    _say(f"{sheet.count(chr(10)) - 1} answers: {file}", f"what each is, for no reader: {key}")


@labels.command("import")
def import_labels(
    key: Annotated[Path, typer.Argument(help="the key that the export wrote beside the sheet")],
    sheets: Annotated[list[Path], typer.Argument(help="the two readers' copies of the sheet")],
    out: Annotated[Path, typer.Option(help="the labels file")] = Path("labels.jsonl"),
) -> None:
    """Check the sheets of two readers, row by row, and join them to a labels file."""
    from datetime import UTC, datetime

    from geo_utils import certificate
    from geo_utils.files import write_atomic

    with refusals():
        text = certificate.import_labels(key, sheets, f"{datetime.now(UTC):%Y-%m-%d}")
        write_atomic(out, text)
        table = certificate.read_labels(out).table
    agreed = int((table["reader_a"] == table["reader_b"]).sum())
    arms = table["method"].map(certificate.arm_of).value_counts()
    _say(f"{len(table)} labels of {table['query_id'].nunique()} queries: {out}")
    _say(*(f"{count:5} {arm}" for arm, count in arms.items()))
    _say(f"the readers agree on {agreed} of {len(table)}")


@cold_start.command("export")
def export_cold_start(recipe: File, folder: Path) -> None:
    """Write a recipe's demonstrations and schedule for LLaMA-Factory."""
    from geo_utils.models.base import FatalError
    from geo_utils.notebooks import read_parameters

    with refusals(FatalError):
        found = read_parameters("04", recipe)[2]
        from geo_utils.grpo.cold_start import export

        path, count = export(found, folder.resolve())  # type: ignore[arg-type]
    _say(f"{count} demonstrations: {path}", f"llamafactory-cli train {path}")


@app.command()
def simulate_gemini(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help=(
                "host, port; latency=constant:S, lognormal:MEDIAN_S,SIGMA or uniform:LOW_S,HIGH_S; "
                "faults.429=0.05, likewise 500, blocked, truncated, hang, reset and empty; "
                "retry_after_s, null to send none; key, the only one that is accepted; "
                "revoke_after so many requests; log, a file that gets a line a request; seed; "
                "thoughts, tokens before an answer; served_as, the model that it says answers"
            ),
        ),
    ] = None,
) -> None:
    """Serve a Gemini look-alike with the offline roles' answers, until interrupted."""
    from geo_utils.parameters import checked, overridden
    from geo_utils.roles.simulated_gemini import Settings, serve

    with refusals():
        serve(checked(Settings, overridden({}, pairs(sets)), "simulate-gemini"))


@app.command("cache")
def list_cache(
    root: Annotated[str, typer.Option(help="the cache folder")] = "outputs/cache",
    role: Annotated[str | None, typer.Option(help="only answers of this role")] = None,
    model: Annotated[str | None, typer.Option(help="only answers of this model")] = None,
    older_than_days: Annotated[float | None, typer.Option(help="only older answers")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="delete what is counted")] = False,
) -> None:
    """Count the answers that are kept, by role and model, or delete them."""
    import pandas as pd

    from geo_utils.files import resolve_path
    from geo_utils.models.cache import AnswerCache, chosen_answers

    with refusals():
        folder = resolve_path(root)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such cache folder; name it by --root")
        held = AnswerCache(folder)
        chosen = pd.DataFrame(chosen_answers(held, role, model, older_than_days))
        busy = held.prune(set(chosen["key"]))[1] if delete and len(chosen) else 0
    for group, tokens in chosen.groupby(["role", "model"])["tokens"] if len(chosen) else ():
        who = "{:10} {:32}".format(*group)
        _say(f"{who} {len(tokens):8,} answers {tokens.sum():12,} tokens")
    _say(f"{len(chosen):,} answers {'deleted' if delete else 'held'} in {folder}")
    if busy:
        _say(f"{busy} segments are being written to and were left alone")


@slurm.command("submit")
def submit(
    notebook: Notebook,
    sets: Sets = None,
    params: Annotated[
        list[str] | None, typer.Option(help="a parameter file; every one meets the whole grid")
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE,VALUE")] = None,
    name: Annotated[str | None, typer.Option(help="of the folder in outputs/slurm")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the script only")] = False,
    partition: str | None = None,
    account: str | None = None,
    time: Annotated[
        str | None, typer.Option(help="limit of a task, which goes on after it")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="tasks that run at once")] = None,
    gpus: Annotated[int | None, typer.Option(help="of a task; default, by its recipe")] = None,
    cpus: Annotated[int | None, typer.Option(help="of a task")] = None,
    settings: Annotated[Path | None, typer.Option(help="default, params/slurm.yaml")] = None,
) -> None:
    """Submit a notebook over a grid: one run a parameter file and point of the grid."""
    from geo_utils.cluster import arrays

    flags = {"partition": partition, "account": account, "time": time, "gpus": gpus, "cpus": cpus}
    given = {k: v for k, v in (flags | {"concurrency": concurrency}).items() if v is not None}
    with refusals():
        asked = arrays.SlurmSettings.read(settings, given)
        points = arrays.parse_grid(grid or ())
        own, tasks = arrays.make_tasks(notebook, params or ["default"], points, pairs(sets))
        _say(*arrays.submit(name, own, tasks, asked, dry_run))


@slurm.command("status")
def array_status(array: Array = None, root: Root = "outputs") -> None:
    """Show how the tasks of an array stand."""
    from geo_utils.cluster import arrays

    with refusals():
        _say(*arrays.status_lines(arrays.find(array, root)))


@slurm.command("collect")
def array_collect(array: Array = None, root: Root = "outputs") -> None:
    """Gather the headlines of the finished runs, as a table and headlines.csv."""
    from geo_utils.cluster import arrays

    with refusals():
        _say(*arrays.collect_lines(arrays.find(array, root)))


@slurm.command("cancel")
def array_cancel(
    array: Annotated[str, typer.Argument(help="name, job id or folder")], root: Root = "outputs"
) -> None:
    """End an array; its runs can be resumed."""
    from geo_utils.cluster import arrays

    with refusals():
        _say(*arrays.cancel(arrays.find(array, root)))


@slurm.command("task", hidden=True)
def array_task(folder: Path, index: int) -> None:
    """Run one task; the array's script calls it."""
    from functools import partial

    from geo_utils.cluster.arrays import Submission
    from geo_utils.cluster.task import run_task
    from geo_utils.notebooks import execute

    with refusals():
        code = run_task(Submission(folder), index, partial(execute, rendered=_rendered))
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
