// Every released checkpoint at its full size, one after the other: written with random weights in a
// temporary folder, loaded, one image and one text embedded, deleted. Takes a while (72 GB are written
// in all), so what is done is remembered and not done again.
//
//   npm run test:checkpoints                  all that are not done yet
//   npm run test:checkpoints -- base naflex   those whose names contain one of the words
//   npm run test:checkpoints -- --fresh       forget what is done
//   npm run test:checkpoints -- --page        docs/checkpoints.md from what is done
//
// SIGLIP2_CHECKPOINTS names the folder to work in (default: one in the system's temporary folder) and
// SIGLIP2_PYTHON a Python with transformers and torch, which then embeds the same image and text.
// SIGLIP2_DATA names the data of the Gemma tokenizer; without it texts are given as ids.
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Siglip2 } from '../../lib';
import type { Release } from '../../lib/model';
import { parameterCount, parameterTable, releaseConfig, releases } from '../../lib/model';
import { writeCheckpoint } from './layout';

const workFolder = process.env['SIGLIP2_CHECKPOINTS'] ?? join(tmpdir(), 'siglip2-checkpoints');
const doneFile = join(workFolder, 'done.jsonl');
const dataFolder =
  process.env['SIGLIP2_DATA'] ?? join(__dirname, '..', '..', '..', 'shared', 'data');
const python = process.env['SIGLIP2_PYTHON'];
const TEXT = 'een foto van een kat';
const TOLERANCE = 1e-4;

interface Outcome {
  readonly repository: string;
  readonly passed: boolean;
  readonly seconds: Readonly<Record<string, number>>;
  /** Largest difference from the reference, where there is one. */
  readonly difference?: number | undefined;
  readonly peakGigabytes?: number;
  readonly problem?: string;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function bytesOf(release: Release): number {
  return 4 * parameterCount(parameterTable(releaseConfig(release)));
}

/** Why a checkpoint cannot be tried here and now. */
function shortage(release: Release): string | undefined {
  const needed = bytesOf(release);
  const { bavail, bsize } = statfsSync(workFolder);
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
  if (bavail * bsize < 1.05 * needed) {
    return `needs ${gigabytes(needed)} of disk, got ${gigabytes(bavail * bsize)}`;
  }
  // Weights once as they are, and once more as far as they are packed.
  if (freemem() < 1.7 * needed) {
    return `needs ${gigabytes(1.7 * needed)} of memory, got ${gigabytes(freemem())}`;
  }
  return undefined;
}

function putTokenizer(folder: string, { generation }: Release): boolean {
  const packed = join(dataFolder, 'tokenizer', 'tokenizer.json.gz');
  if (generation !== 2 || !existsSync(packed)) return false;
  writeFileSync(join(folder, 'tokenizer.json'), gunzipSync(readFileSync(packed)));
  const config = 'tokenizer_config.json';
  copyFileSync(join(dataFolder, 'tokenizer', config), join(folder, config));
  return true;
}

// Ids of any kind, the last of the vocabulary among them, padded as the model pads.
function someIds({ generation }: Release, vocabulary: number, length: number): Int32Array {
  const ids = new Int32Array(length).fill(generation === 1 ? 1 : 0);
  ids.set([vocabulary - 1, Math.floor(vocabulary / 2), 7, 1]);
  return ids;
}

/** Writes a checkpoint and embeds with it; in a process of its own, so that no memory is left behind. */
async function tryOne(release: Release, folder: string): Promise<Outcome> {
  const seconds: Record<string, number> = {};
  let start = performance.now();
  const lap = (name: string): void => {
    seconds[name] = Math.round(performance.now() - start) / 1000;
    start = performance.now();
  };
  const config = releaseConfig(release);
  await writeCheckpoint(folder, release, config);
  const hasTokenizer = putTokenizer(folder, release);
  lap('write');
  using model = await Siglip2.load(folder);
  lap('load');
  const { vision, text, embedding } = config;
  const [rows, columns] = [14, 18];
  const side = vision.layout === 'fixed' ? vision.imageSize : 0;
  const count = vision.layout === 'fixed' ? side * side : rows * columns * vision.patch ** 2;
  const pixelValues = Float32Array.from({ length: 3 * count }, (_, i) => Math.sin(i * i * 0.37));
  const spatialShape = vision.layout === 'naflex' ? ([rows, columns] as const) : undefined;
  const [image] = await model.embedImages([
    spatialShape === undefined ? { pixelValues } : { pixelValues, spatialShape },
  ]);
  lap('image');
  const inputIds = someIds(release, text.vocabulary, text.length);
  const [vector] = await model.embedTexts([{ inputIds }]);
  lap('text');
  const spoken = hasTokenizer ? await model.embedTexts([TEXT]) : [];
  lap('string');
  const sound = [image, vector, ...spoken].every((embedded) => {
    const finite = embedded.every(Number.isFinite);
    return finite && embedded.length === embedding && Math.abs(Math.hypot(...embedded) - 1) < 1e-4;
  });
  model.dispose();
  const difference =
    python === undefined
      ? undefined
      : compare(folder, { pixelValues, spatialShape, inputIds, image, text: vector });
  lap('reference');
  return {
    repository: release.repository,
    passed: sound && !(difference !== undefined && !(difference < TOLERANCE)),
    seconds,
    difference,
    peakGigabytes: Math.round(process.resourceUsage().maxRSS / 1e4) / 100,
  };
}

interface Embedded {
  readonly pixelValues: Float32Array;
  readonly spatialShape: readonly [number, number] | undefined;
  readonly inputIds: Int32Array;
  readonly image: Float32Array;
  readonly text: Float32Array;
}

// The largest difference between our embeddings and those of transformers.
function compare(folder: string, embedded: Embedded): number {
  const put = (name: string, data: Float32Array | Int32Array): void => {
    writeFileSync(
      join(folder, name),
      new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    );
  };
  put('pixels.f32', embedded.pixelValues);
  put('ids.i32', embedded.inputIds);
  const shape = (embedded.spatialShape ?? []).map(String);
  const script = join(__dirname, 'reference.py');
  const { status, stdout, stderr } = spawnSync(python ?? '', [script, folder, ...shape], {
    encoding: 'utf8',
    maxBuffer: 1 << 24,
  });
  if (status !== 0) throw new Error(`reference: ${stderr.trim().split('\n').slice(-1).join('')}`);
  const expected = JSON.parse(stdout) as { image: number[]; text: number[] };
  const largest = (actual: Float32Array, wanted: readonly number[]): number =>
    Math.max(...wanted.map((value, i) => Math.abs(value - actual[i])));
  return Math.max(largest(embedded.image, expected.image), largest(embedded.text, expected.text));
}

function outcomeOf(release: Release): Outcome {
  const folder = join(workFolder, release.repository.replace('/', '_'));
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  try {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [...process.execArgv, __filename, '--one', release.repository, folder],
      { encoding: 'utf8', maxBuffer: 1 << 24 },
    );
    if (status === 0) return JSON.parse(stdout) as Outcome;
    const problem = stderr.trim().split('\n').slice(0, 8).join(' | ') || `status ${String(status)}`;
    return { repository: release.repository, passed: false, seconds: {}, problem };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function outcomesSoFar(): Map<string, Outcome> {
  if (!existsSync(doneFile)) return new Map();
  const lines = readFileSync(doneFile, 'utf8').split('\n').filter(Boolean);
  return new Map(
    lines.map((line) => {
      const outcome = JSON.parse(line) as Outcome;
      return [outcome.repository, outcome];
    }),
  );
}

function shown({
  repository,
  passed,
  seconds,
  difference,
  peakGigabytes,
  problem,
}: Outcome): string {
  const times = Object.entries(seconds).map(([name, time]) => `${name} ${time.toFixed(1)} s`);
  const parts = [passed ? 'passed' : 'FAILED', repository, ...times];
  if (difference !== undefined) parts.push(`reference within ${difference.toExponential(1)}`);
  if (peakGigabytes !== undefined) parts.push(`peak ${String(peakGigabytes)} GB`);
  if (problem !== undefined) parts.push(problem);
  return parts.join('  ');
}

function pageOf(outcomes: ReadonlyMap<string, Outcome>): string {
  const rows = releases.map((release) => {
    const outcome = outcomes.get(release.repository);
    const { passed, seconds = {}, difference, peakGigabytes } = outcome ?? {};
    const state = outcome === undefined ? 'not tried' : passed === true ? 'passed' : 'failed';
    const cells = [
      release.repository,
      `${(bytesOf(release) / 4e6).toFixed(0)} M`,
      state,
      seconds['load']?.toFixed(1) ?? '',
      peakGigabytes?.toFixed(1) ?? '',
      difference?.toExponential(1) ?? '',
    ];
    return `| ${cells.join(' | ')} |`;
  });
  return [
    '# Released checkpoints at full size',
    '',
    'Made by `npm run test:checkpoints -- --page`; do not edit. Each was written with random weights under the',
    "released checkpoint's tensor names, shapes, dtypes and shards, and loaded; an image and a text went through",
    'it, in float32. The last column is the largest difference of their embeddings from those of Python’s',
    'transformers on the same file. Loading packs all weights.',
    '',
    '| repository | parameters | | load, s | peak memory, GB | difference |',
    '| --- | --- | --- | --- | --- | --- |',
    ...rows,
    '',
  ].join('\n');
}

function runAll(words: readonly string[], fresh: boolean): void {
  mkdirSync(workFolder, { recursive: true });
  if (fresh) rmSync(doneFile, { force: true });
  const done = outcomesSoFar();
  const chosen = releases.filter(
    ({ repository }) => words.length === 0 || words.some((word) => repository.includes(word)),
  );
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const release of chosen) {
    const before = done.get(release.repository);
    const lack = before?.passed === true ? undefined : shortage(release);
    if (lack !== undefined) {
      counts.skipped++;
      say(`skipped  ${release.repository}  ${lack}`);
      continue;
    }
    const outcome = before?.passed === true ? before : outcomeOf(release);
    if (outcome !== before) appendFileSync(doneFile, `${JSON.stringify(outcome)}\n`);
    counts[outcome.passed ? 'passed' : 'failed']++;
    say(shown(outcome));
  }
  say(
    `${String(counts.passed)} passed, ${String(counts.failed)} failed, ${String(counts.skipped)} skipped`,
  );
  process.exitCode = counts.failed === 0 ? 0 : 1;
}

const [first, repository, folder] = process.argv.slice(2);
if (first === '--one') {
  const release = releases.find((one) => one.repository === repository);
  if (release === undefined) throw new Error(`${repository} must be a released checkpoint`);
  void tryOne(release, folder).then((outcome) => {
    say(JSON.stringify(outcome));
  });
} else if (first === '--page') {
  writeFileSync(join(__dirname, '..', '..', 'docs', 'checkpoints.md'), pageOf(outcomesSoFar()));
} else {
  const words = process.argv.slice(2).filter((word) => word !== '--fresh');
  runAll(words, process.argv.includes('--fresh'));
}
