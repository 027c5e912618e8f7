// Training data on this machine: photographs to batches (read, decoded, squashed, tokenised), in
// examples per second by the number of decoder threads, beside what a training step takes in. A warm
// cache of the disk is part of it, as in later epochs.
//
//   npm run bench:data -- <folder of JPEG photographs> [--size 256] [--batch 64] [--seconds 6]
//                         [--pairs-per-second <rate of the trainer>] [--tokenizer <folder>]
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { imageFiles } from '../lib/corpus';
import { openCorpusBatches } from '../lib/data';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    size: { type: 'string', default: '256' },
    batch: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '6' },
    'pairs-per-second': { type: 'string' },
    tokenizer: {
      type: 'string',
      default: join(__dirname, '..', 'node_modules', '@lenml', 'tokenizer-gemma', 'models'),
    },
  },
});

interface Row {
  readonly workers: number;
  readonly perSecond: number;
  readonly processorSeconds: number;
}

async function measure(corpus: string, workers: number): Promise<Row> {
  const stream = await openCorpusBatches(
    {
      mixture: {
        corpora: { photos: { inputs: [corpus], imageRoot: '/' } },
        streams: [{ name: 'photos', weight: 1, corpus: 'photos' }],
      },
      batch: Number(values.batch),
      size: Number(values.size),
      tokenizer: values.tokenizer,
      workers,
    },
    { ahead: 2 },
  );
  try {
    // Threads start and the queue fills.
    for (let i = 0; i < 4; i++) await stream.next();
    const before = process.cpuUsage();
    const start = performance.now();
    let examples = 0;
    while (performance.now() - start < 1000 * Number(values.seconds)) {
      examples += (await stream.next()).ids.length;
    }
    const elapsed = (performance.now() - start) / 1000;
    const { user, system } = process.cpuUsage(before);
    const processorSeconds = (user + system) / 1e6;
    return {
      workers,
      perSecond: examples / elapsed,
      processorSeconds: processorSeconds / examples,
    };
  } finally {
    await stream.close();
  }
}

async function main(): Promise<void> {
  const [folder] = positionals;
  if (folder === undefined) throw new Error('give a folder of photographs');
  const photos = (await imageFiles(folder)).filter((file) => /\.jpe?g$/iu.test(file));
  const scratch = mkdtempSync(join(tmpdir(), 'siglip2-bench-'));
  try {
    const corpus = join(scratch, 'photos.jsonl');
    const lines = photos.map((file, i) => {
      const text = `a photograph of some place, number ${String(i)}`;
      return `${JSON.stringify({ image: resolve(file), text })}\n`;
    });
    writeFileSync(corpus, lines.join(''));
    const print = (text: string): void => {
      process.stdout.write(`${text}\n`);
    };
    print(
      `${String(photos.length)} photographs, squashed to ${values.size}², batches of ${values.batch}, ` +
        `${String(availableParallelism())} processors (${cpus()[0]?.model ?? 'unknown'})`,
    );
    for (const workers of [0, 1, 2]) {
      const { perSecond, processorSeconds } = await measure(corpus, workers);
      const decoders = workers === 1 ? '1 decoder thread ' : `${String(workers)} decoder threads`;
      let line =
        `${decoders}  ${perSecond.toFixed(0).padStart(6)} examples/s  ` +
        `${(1000 * processorSeconds).toFixed(2)} ms of processor time each`;
      const rate = Number(values['pairs-per-second'] ?? NaN);
      if (rate > 0) {
        line += `  ${(perSecond / rate).toFixed(1)}× a trainer of ${String(rate)} pairs/s`;
      }
      print(line);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

void main();
