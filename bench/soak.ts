// Long runs: does memory stay, and does the event loop stay free?
//
//   npm run bench:soak                            20,000 embeddings of a small model, 20 loads
//   npm run bench:soak -- --model base-224 --embeddings 2000 --cycles 5
//
// Writes bench/results/soak.json and the curves in bench/results/soak.html; another model than the
// small one writes soak_<model>.json and .html.
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { lineChart } from '../lib/cli/line_chart';
import { Siglip2 } from '../lib/embed';
import { loadAddon } from '../lib/native/load';
import { pixelValues } from './inputs';
import type { BenchModel } from './models';
import { modelFolder, models } from './models';
import { writeJson, writeText } from './results';
import { rounded } from './rows';

const batchSize = 16;
/** Readings of memory in a run. */
const readings = 200;
/** Share of a curve that is warming up: programs are compiled, the heap finds its size. */
const warmUp = 0.2;
const delayResolution = 1;

type Point = readonly [number, number];

interface Delays {
  /** Milliseconds a timer came late. */
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

interface Soak {
  readonly model: string;
  readonly embeddings: number;
  readonly cycles: number;
  /** Growth of the fitted line after warming up, in per cent of its start. */
  readonly driftPercent: { readonly embedding: number; readonly loading: number };
  readonly eventLoopDelay: { readonly idle: Delays; readonly embedding: Delays };
  /** [embeddings or loads so far, MiB resident] */
  readonly memory: { readonly embedding: readonly Point[]; readonly loading: readonly Point[] };
}

function resident(): number {
  globalThis.gc?.();
  return rounded(process.memoryUsage.rss() / 2 ** 20);
}

/** Growth in per cent of the least-squares line through the points after warming up. */
function drift(points: readonly Point[]): number {
  const kept = points.slice(Math.floor(warmUp * points.length));
  if (kept.length < 2) return 0;
  const mean = (of: (point: Point) => number): number =>
    kept.reduce((sum, point) => sum + of(point), 0) / kept.length;
  const [x0, y0] = [mean(([x]) => x), mean(([, y]) => y)];
  const slope = mean(([x, y]) => (x - x0) * (y - y0)) / mean(([x]) => (x - x0) ** 2);
  const at = ([x]: Point): number => y0 + slope * (x - x0);
  return rounded((100 * (at(kept[kept.length - 1]) - at(kept[0]))) / at(kept[0]));
}

async function delaysDuring(work: () => Promise<unknown>): Promise<Delays> {
  const histogram = monitorEventLoopDelay({ resolution: delayResolution });
  histogram.enable();
  await work();
  histogram.disable();
  // The histogram counts the timer's own interval in.
  const late = (nanoseconds: number): number =>
    rounded(Math.max(0, nanoseconds / 1e6 - delayResolution));
  return {
    p50: late(histogram.percentile(50)),
    p99: late(histogram.percentile(99)),
    max: late(histogram.max),
  };
}

async function soak(model: BenchModel, embeddings: number, cycles: number): Promise<Soak> {
  const folder = await modelFolder(model);
  const { vision } = model.config;
  if (vision.layout !== 'fixed') throw new Error('soak: the model must take images of one size');
  const images = pixelValues(batchSize, vision.imageSize).map((values) => ({
    pixelValues: values,
  }));
  const idle = await delaysDuring(() => sleep(1000));
  const embedding: Point[] = [];
  const siglip = await Siglip2.load(folder);
  const every = Math.max(1, Math.floor(embeddings / batchSize / readings));
  const loaded = await delaysDuring(async () => {
    for (let batch = 0; batch * batchSize < embeddings; batch++) {
      await siglip.embedImages(images, { batchSize });
      // Collecting garbage for a reading would count as delay; the heap is left to itself here.
      if (batch % every === 0) {
        embedding.push([(batch + 1) * batchSize, rounded(process.memoryUsage.rss() / 2 ** 20)]);
      }
    }
  });
  siglip.dispose();
  const loading: Point[] = [];
  const before = loadAddon().memory();
  for (let cycle = 1; cycle <= cycles; cycle++) {
    const again = await Siglip2.load(folder);
    await again.embedImages(images.slice(0, 1));
    again.dispose();
    loading.push([cycle, resident()]);
  }
  const after = loadAddon().memory();
  if (after.bufferBytes > before.bufferBytes) {
    throw new Error(
      `soak: ${String(after.bufferBytes - before.bufferBytes)} bytes of device memory left after dispose`,
    );
  }
  return {
    model: model.title,
    embeddings,
    cycles,
    driftPercent: { embedding: drift(embedding), loading: drift(loading) },
    eventLoopDelay: { idle, embedding: loaded },
    memory: { embedding, loading },
  };
}

function pageOf({ model, embeddings, cycles, driftPercent, eventLoopDelay, memory }: Soak): string {
  const { idle, embedding } = eventLoopDelay;
  const delay = ({ p50, p99, max }: Delays): string =>
    `p50 ${String(p50)} ms, p99 ${String(p99)} ms, most ${String(max)} ms`;
  const chart = (title: string, points: readonly Point[]): string =>
    `<h2>${title}</h2>${lineChart([{ name: 'MiB', points }])}`;
  return `<!doctype html>
<meta charset="utf-8"><title>Soak: ${model}</title>
<style>:root { --accent: #2563eb; --line: #ddd } body { font: 14px sans-serif; max-width: 48em; margin: 2em auto } svg { width: 100% } text { font: 10px sans-serif }</style>
<h1>Soak: ${model}</h1>
<p>Timers late while embedding: ${delay(embedding)}; while idle: ${delay(idle)}.</p>
${chart(`Resident MiB over ${String(embeddings)} embeddings, drift ${String(driftPercent.embedding)} %`, memory.embedding)}
${chart(`Resident MiB after each of ${String(cycles)} loads and disposals, drift ${String(driftPercent.loading)} %`, memory.loading)}
`;
}

function count(name: string, value: string): number {
  const number = Number(value);
  if (Number.isSafeInteger(number) && number > 0) return number;
  throw new Error(`soak: --${name} must be a positive integer, got ${value}`);
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      model: { type: 'string', default: 'small' },
      embeddings: { type: 'string', default: '20000' },
      cycles: { type: 'string', default: '20' },
    },
  });
  const model = models.find(({ name }) => name === values.model);
  if (model === undefined) {
    const names = models.map(({ name }) => name).join(', ');
    throw new Error(`soak: --model must be one of ${names}, got ${values.model}`);
  }
  const embeddings = count('embeddings', values.embeddings);
  const result = await soak(model, embeddings, count('cycles', values.cycles));
  const name = model.name === 'small' ? 'soak' : `soak_${model.name}`;
  const path = join(__dirname, 'results', name);
  writeJson(`${path}.json`, result);
  writeText(`${path}.html`, pageOf(result));
  const { driftPercent, eventLoopDelay } = result;
  process.stdout.write(
    `${model.title}: memory drift ${String(driftPercent.embedding)} % over ${String(embeddings)} embeddings, ` +
      `${String(driftPercent.loading)} % over ${String(result.cycles)} loads; timers late while embedding ` +
      `p50 ${String(eventLoopDelay.embedding.p50)} ms, p99 ${String(eventLoopDelay.embedding.p99)} ms ` +
      `(idle p99 ${String(eventLoopDelay.idle.p99)} ms)\n`,
  );
}

void main();
