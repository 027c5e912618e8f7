// A GPU: kernels, losses, towers and training steps, and PyTorch on the same card in the same run.
//
//   npm run bench:gpu                        everything; bench/results/<card>.json and the page
//   npm run bench:gpu -- --only attention    rows whose name contains the word (may be repeated)
//   npm run bench:gpu -- --quick             small sizes, to see that everything works
//   npm run bench:gpu -- --whole             PyTorch compiles whole towers and steps, which takes minutes
//   npm run bench:gpu -- --page              docs/benchmarks-gpu.md from bench/results
//   --no-peer, --no-ours, --seconds 150 (for all rows), --device cuda:1 or cpu, --list
//   --output FILE   the results go there and nothing else is written
//
// SIGLIP2_BENCH_PYTHON: a Python with torch and transformers. Both sides are processes of their own,
// so that what breaks the device for one row does not take the others along.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import type { Device } from '../lib/array';
import { resolveDevice } from '../lib/array';
import { loadAddon } from '../lib/native/load';
import type { Taken, Target } from './gpu_ours';
import { measureOurs } from './gpu_ours';
import type { GpuResults } from './gpu_page';
import { gpuPageOf } from './gpu_page';
import type { GpuRow, Request } from './gpu_rows';
import { figureOf, gpuRows } from './gpu_rows';
import { JsonChild } from './json_child';
import { readJson, writeJson, writeText } from './results';
import type { Row, Skipped } from './rows';
import { rounded } from './rows';

const resultsFolder = join(__dirname, 'results');
const pageFile = join(__dirname, '..', 'docs', 'benchmarks-gpu.md');
const python = process.env['SIGLIP2_BENCH_PYTHON'] ?? 'python3';

interface PeerReply {
  readonly variants: Readonly<Record<string, { readonly seconds: number; readonly bytes: number }>>;
  readonly failed: Readonly<Record<string, string>>;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0];
}

/** Answers one request per line of standard input. */
async function work(target: Target): Promise<void> {
  for await (const line of createInterface({ input: process.stdin })) {
    let reply: object;
    try {
      reply = await measureOurs(JSON.parse(line) as Request, target);
    } catch (error) {
      reply = { error: reasonOf(error) };
    }
    say(JSON.stringify(reply));
  }
}

function whyNoPeer(device: Device): string | undefined {
  const check = device === 'cpu' ? '' : '; assert torch.cuda.is_available()';
  const script = `import torch, transformers${check}`;
  const { status } = spawnSync(python, ['-c', script]);
  return status === 0 ? undefined : `${python} has no torch with CUDA, or no transformers`;
}

function lineOf({ name, peerName, ours, peer, ratio, unit }: Row): string {
  const figure = (value: number): string =>
    Number.isFinite(value) ? String(Number(value.toPrecision(4))) : '–';
  const ratioText = Number.isFinite(ratio) ? `${ratio.toFixed(2)}×` : '–';
  return `${name.padEnd(70)} ${figure(ours).padStart(8)} ${unit.padEnd(8)} ${figure(peer).padStart(8)} ${ratioText.padStart(8)}  ${peerName}`;
}

/** Whether an error is one after which a process cannot use the device any more. */
function deviceFailed(reason: string): boolean {
  return /cudaError|CUDA error|AcceleratorError|must go on working/u.test(reason);
}

class Sides {
  readonly rows: Row[] = [];
  readonly variants: Record<string, Record<string, number>> = {};
  readonly skipped: Skipped[] = [];

  constructor(
    private readonly ours: JsonChild | undefined,
    private readonly peer: JsonChild | undefined,
  ) {}

  async measure(row: GpuRow): Promise<void> {
    const mine = await this.ask(this.ours, 'ours', row, row.seconds);
    // By its own clock first, so that it lives on with what it compiled.
    const theirs = await this.ask(this.peer, 'PyTorch', row, row.seconds + 20);
    const own = mine as Taken | undefined;
    const reply = theirs as PeerReply | undefined;
    for (const [form, reason] of Object.entries(reply?.failed ?? {})) {
      this.skip(`PyTorch ${form}: ${row.name}`, reason);
      if (deviceFailed(reason)) this.peer?.end();
    }
    const forms = Object.entries(reply?.variants ?? {});
    if (own === undefined && forms.length === 0) return;
    this.variants[row.name] = Object.fromEntries(
      forms.map(([form, { seconds }]) => [form, rounded(figureOf(row, seconds))]),
    );
    const least = (of: 'seconds' | 'bytes'): readonly [string, number] => {
      const best = [...forms].sort(([, a], [, b]) => a[of] - b[of]).at(0);
      return best === undefined ? ['none', NaN] : [best[0], best[1][of]];
    };
    const [form, seconds] = least('seconds');
    this.add(
      row.name,
      form,
      row.unit,
      figureOf(row, own?.seconds ?? NaN),
      figureOf(row, seconds),
      seconds / (own?.seconds ?? NaN),
    );
    if (row.memory === true) {
      const [lean, bytes] = least('bytes');
      const mebibytes = (own?.bytes ?? NaN) / 2 ** 20;
      const peak = bytes / 2 ** 20;
      this.add(`${row.name}, peak memory`, lean, 'MiB', mebibytes, peak, peak / mebibytes);
    }
  }

  end(): void {
    this.ours?.end();
    this.peer?.end();
  }

  private async ask(
    side: JsonChild | undefined,
    name: string,
    { request, seconds, name: row }: GpuRow,
    limit: number,
  ): Promise<unknown> {
    try {
      return await side?.ask({ ...request, seconds }, limit);
    } catch (error) {
      const reason = reasonOf(error);
      this.skip(`${name}: ${row}`, reason);
      if (deviceFailed(reason)) side?.end();
      return undefined;
    }
  }

  private add(
    name: string,
    peerName: string,
    unit: string,
    ours: number,
    peer: number,
    ratio: number,
  ): void {
    const row: Row = {
      name,
      peerName,
      ours: rounded(ours),
      peer: rounded(peer),
      ratio: rounded(ratio),
      unit,
    };
    this.rows.push(row);
    say(lineOf(row));
  }

  skip(name: string, reason: string): void {
    this.skipped.push({ name, reason });
    say(`${name}: not measured, ${reason}`);
  }
}

function writePage(): void {
  const files = existsSync(resultsFolder) ? readdirSync(resultsFolder) : [];
  const results = files
    .filter((file) => /^(?!cpu).*\.json$/u.test(file))
    .map((file) => readJson(join(resultsFolder, file)) as Partial<GpuResults>)
    .filter((content): content is GpuResults => content.machine?.['gpu'] !== undefined);
  writeText(pageFile, gpuPageOf(results));
}

function readArguments(): {
  only: string[];
  quick: boolean;
  whole: boolean;
  page: boolean;
  list: boolean;
  work: boolean;
  peer: boolean;
  ours: boolean;
  seconds: number;
  device: Device;
  output?: string;
} {
  const { values } = parseArgs({
    options: {
      only: { type: 'string', multiple: true, default: [] },
      quick: { type: 'boolean', default: false },
      whole: { type: 'boolean', default: false },
      page: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      work: { type: 'boolean', default: false },
      'no-peer': { type: 'boolean', default: false },
      'no-ours': { type: 'boolean', default: false },
      seconds: { type: 'string', default: '600' },
      device: { type: 'string', default: 'cuda' },
      output: { type: 'string' },
    },
  });
  return {
    ...values,
    peer: !values['no-peer'],
    ours: !values['no-ours'],
    seconds: Number(values.seconds),
    device: values.device as Device,
  };
}

async function main(): Promise<void> {
  const asked = readArguments();
  if (asked.page) {
    writePage();
    return;
  }
  const rows = gpuRows(asked).filter(
    ({ name }) => asked.only.length === 0 || asked.only.some((word) => name.includes(word)),
  );
  if (asked.list) {
    for (const { name, seconds, request } of rows)
      say(JSON.stringify({ name, seconds, ...request }));
    return;
  }
  const { device, reason } = resolveDevice(asked.device);
  const precision = device === 'cpu' ? 'float32' : 'bfloat16';
  if (asked.work) {
    await work({ device, precision });
    return;
  }
  const { cuda } = loadAddon().describe();
  const card = cuda.devices.find(({ index }) => device === `cuda:${String(index)}`);
  const noPeer = asked.peer ? whyNoPeer(device) : 'switched off';
  const ours = asked.ours
    ? new JsonChild(process.execPath, [
        ...process.execArgv,
        __filename,
        '--work',
        ...['--device', device],
      ])
    : undefined;
  const peer =
    noPeer === undefined
      ? new JsonChild(python, [join(__dirname, 'peers', 'pytorch_gpu.py')])
      : undefined;
  const sides = new Sides(ours, peer);
  if (noPeer !== undefined) sides.skip('PyTorch', noPeer);
  const facts = (await peer?.ask({ kind: 'facts' }, 120)) as Record<string, string> | undefined;
  const machine = {
    gpu: card?.name ?? device,
    driver: cuda.driver ?? 'none',
    node: process.version,
    ...facts,
    wall: 0,
  };
  say(`${device}: ${reason}; ${JSON.stringify(facts ?? {})}`);
  const start = performance.now();
  const elapsed = (): number => (performance.now() - start) / 1000;
  const results = (): GpuResults => ({
    machine: { ...machine, wall: Math.round(elapsed()) },
    rows: sides.rows,
    variants: sides.variants,
    skipped: sides.skipped,
  });
  for (const row of rows) {
    if (elapsed() > asked.seconds) {
      sides.skip(row.name, `not begun within ${String(asked.seconds)} s`);
      continue;
    }
    await sides.measure(row);
    // What was measured so far outlives whatever ends this process.
    if (asked.output !== undefined) writeJson(asked.output, results());
  }
  sides.end();
  say(`${String(sides.rows.length)} rows in ${elapsed().toFixed(0)} s`);
  if (asked.quick || asked.only.length > 0 || asked.output !== undefined) return;
  const file = (card?.name ?? device).toLowerCase().replace(/[^a-z0-9]+/gu, '_');
  writeJson(join(resultsFolder, `${file}.json`), results());
  writePage();
}

main().catch((error: unknown) => {
  process.stderr.write(`bench:gpu: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
