#!/usr/bin/env python3
"""The evidence: ``python benchmarks/evidence/run.py --source PATH/TO/emoji64 --pacs PATH/TO/pacs128`` makes it again.

With one of the two folders alone it does the studies on that one. Runs that are in ``results.jsonl`` are not done
again; several processes (``--workers``, or the command several times) share the rest. What is built on the way
(teachers, VQGANs, views) is kept in ``--work``.
"""

import argparse
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pacs
import pacs_models
import torch
from data import TRAIN_STYLE, corrupted, read_styles, test_sets, to_tensor, top1
from filelock import FileLock, Timeout
from jobs import STUDIES, all_jobs
from models import (
    TEACHERS,
    VQGANS,
    build_teacher,
    build_vqgan,
    load_frozen,
    load_teacher,
    teacher_facts,
    templates_file,
    vqgan_facts,
)
from tables import write_tables
from train import Job, Materials, measure, run_job

from timm_dad.common.files import write_file
from timm_dad.demo.data import DEMO_TEACHER

HERE = Path(__file__).parent
RESULTS = HERE / 'results.jsonl'


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Results by the run's key."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line['key']: line for line in lines}


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Add one line, in the order of keys; never half a file, whoever else writes."""
    with FileLock(path.with_suffix('.lock')):
        results = {**read_results(path), result['key']: result}
        write_file(path, ''.join(json.dumps(results[key]) + '\n' for key in sorted(results)))


def prepare(source: Path, work: Path, jobs: list[Job]) -> Materials:
    """Build, or find built, what the jobs need."""
    styles = read_styles(source)
    tests = test_sets(styles)
    teachers, vqgans = {}, {}
    for name in TEACHERS:
        if any(job.teacher == name for job in jobs):
            with FileLock(work / f'teacher-{name}.lock'):
                teachers[name] = build_teacher(name, styles, source, work)
    for name in VQGANS:
        if any(job.vqgan == name for job in jobs):
            with FileLock(work / f'vqgan-{name}.lock'):
                vqgans[name] = build_vqgan(name, styles, work)
    with FileLock(work / 'corrupted.lock'):
        images = corrupted(tests[TRAIN_STYLE][0], work)
    return Materials(styles, tests, images, teachers, vqgans, templates_file(work), work)


def prepare_pacs(source: Path, work: Path) -> Materials:
    """Build, or find built, what the jobs on PACS need."""
    with FileLock(work / 'pacs.lock'):
        root = pacs.unpack(source, work)
    with FileLock(work / 'pacs-teacher.lock'):
        teachers = {pacs_models.TEACHER: pacs_models.build_teacher(root, work)}
    with FileLock(work / 'pacs-vqgan.lock'):
        vqgans = {pacs_models.VQGAN_NAME: pacs_models.build_vqgan(root, work)}
    styles = {pacs.TRAIN: pacs.read_split(root, f'train/{pacs.TRAIN}')}
    facts = {'data': 'pacs', 'data_flags': ('--data-dir', str(root))}
    return Materials(styles, pacs.test_sets(root), None, teachers, vqgans, templates_file(work), work, **facts)


def measure_models(materials: Materials, results: Path) -> None:
    """Top-1 of the teachers, on pictures and on the reconstructions of each VQGAN, and what those lose."""
    on_pacs = materials.data == 'pacs'
    study = 'pacs models' if on_pacs else 'models'
    judge = pacs_models.TEACHER if on_pacs else 'strong'
    known = read_results(results)
    for name, path in materials.teachers.items():
        key, settings = f'{study} | teacher {name}', teacher_facts(name)
        if known.get(key, {}).get('settings') != settings:
            row = {'settings': settings, 'study': study, 'row': f'teacher {name}', 'seed': 0}
            add_result(results, {'key': key, **row, **measure(load_teacher(path), materials, normalize=False)})
    for name, path in materials.vqgans.items():
        key, settings = f'{study} | teacher {judge} on Q(x) of {name}', vqgan_facts(name)
        if known.get(key, {}).get('settings') != settings:
            teacher, vqgan = load_frozen(materials.teachers[judge] if on_pacs else DEMO_TEACHER, path)
            styles, l1, psnr = {}, {}, {}
            for style, (x, labels) in materials.tests.items():
                with torch.inference_mode():
                    x_vq = torch.cat([vqgan(batch) for batch in to_tensor(x).split(64)])
                error = x_vq - to_tensor(x)
                l1[style] = error.abs().mean().item()
                psnr[style] = -10 * error.square().mean(dim=(1, 2, 3)).log10().mean().item()
                pixels = x_vq.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
                styles[style] = top1(teacher, pixels, labels, normalize=False)
            row = {'settings': settings, 'study': study, 'row': f'teacher {judge} on Q(x) of {name}', 'seed': 0}
            add_result(results, {'key': key, **row, 'styles': styles, 'l1': l1, 'psnr': psnr})


def run_all(jobs: list[Job], materials: Materials, results: Path) -> None:
    """Do the jobs that nobody has done or is doing."""
    for job in jobs:
        claim = FileLock(materials.work / 'claims' / f'{zlib.crc32(job.key.encode()):08x}.lock')
        try:
            with claim.acquire(timeout=0):
                if read_results(results).get(job.key, {}).get('settings') != job.settings:
                    print(f'{job.key} ...', flush=True)
                    found = run_job(job, materials)
                    names = {'key': job.key, 'settings': job.settings, 'study': job.study, 'row': job.row}
                    add_result(results, {**names, 'seed': job.seed, **found})
        except Timeout:
            continue


def main() -> None:
    """Run what is missing, then write tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, help='folder of emoji64: <style>.npz and captions.json')
    parser.add_argument('--pacs', type=Path, help='folder of PACS at 128 px: <style>.tar')
    parser.add_argument('--work', type=Path, default=Path('output/evidence'), help='folder of what is built on the way')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file of the results')
    parser.add_argument('--studies', nargs='+', choices=tuple(STUDIES), help='what to run (default: all on these data)')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='rows of them to run; all by default')
    parser.add_argument('--workers', type=int, default=1, help='processes, of one thread each')
    parser.add_argument('--tables-only', action='store_true', help='run nothing')
    args = parser.parse_args()
    sources = {'emoji64': args.source, 'pacs': args.pacs}
    studies = args.studies or [name for name, (rows, _) in STUDIES.items() if sources[rows[0].data]]
    torch.set_num_threads(1)
    if not args.tables_only:
        check_sources(parser, sources, studies)
        (args.work / 'claims').mkdir(parents=True, exist_ok=True)
        others = [
            subprocess.Popen([sys.executable, __file__, *without_workers(sys.argv[1:]), '--workers', '1'])
            for _ in range(args.workers - 1)
        ]
        jobs = [job for job in all_jobs(studies) if args.rows is None or job.row in args.rows]
        for data, source in sources.items():
            own = [job for job in jobs if job.data == data]
            if own:
                materials = prepare_pacs(source, args.work) if data == 'pacs' else prepare(source, args.work, own)
                measure_models(materials, args.results)
                run_all(own, materials, args.results)
        if any(process.wait() for process in others):
            sys.exit('a worker failed; start the command again to go on')
    write_tables(read_results(args.results), args.results.parent)


def check_sources(parser: argparse.ArgumentParser, sources: dict[str, Path | None], studies: list[str]) -> None:
    """Refuse folders that are not what they should be, and studies without theirs."""
    expected = {
        'emoji64': ('--source', 'noto.npz', 'emoji64 with noto.npz and the other styles'),
        'pacs': ('--pacs', 'photo.tar', 'PACS with photo.tar and the other styles'),
    }
    needed = {STUDIES[study][0][0].data for study in studies} or set(sources)
    for data, (flag, file, what) in expected.items():
        source = sources[data]
        if (source or data in needed) and not (source and (source / file).is_file()):
            parser.error(f'{flag} must be the folder of {what}, got {source}')


def without_workers(argv: list[str]) -> list[str]:
    """The command line without ``--workers N``."""
    if '--workers' in argv:
        position = argv.index('--workers')
        return argv[:position] + argv[position + 2 :]
    return argv


if __name__ == '__main__':
    main()
