// Memory and time of the sigmoid loss as the batch grows, and of a training step on the demo's model in
// micro-batches.
//
//   npm run bench:loss                        to 65,536 pairs of width 128, table on standard output
//   npm run bench:loss -- --most 16384 --width 768
//   npm run bench:loss -- --step              one step of 4,096 pairs in 16, 32, … 1,024 micro-batches
//
// "measured" is what the process grew by while the loss ran, as the operating system counts it; "planned"
// is what the program said before it ran.
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { emojiRecipe } from '../lib/cli/emoji_recipe';
import { integer } from '../lib/cli/integer';
import { DeviceArray } from '../lib/array';
import { Philox4x32 } from '../lib/array/random';
import { emojiPreset } from '../lib/data';
import type { Tensor } from '../lib/graph';
import { compile, disposeArrays, float32, gradient } from '../lib/graph';
import { initialValues, twoTowersParameters } from '../lib/model';
import { sigmoidLoss } from '../lib/ops';
import { compileTwoTowersCachedStep, scheduleInput } from '../lib/train';

const MIB = 2 ** 20;
const smallest = 4096;

/** Most bytes of the process that were ever in memory at once. */
function mostResident(): number {
  const status = readFileSync('/proc/self/status', 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? NaN) * 1024;
}

function unitRows(rows: number, width: number, name: string): Float32Array {
  const values = new Float32Array(rows * width);
  new Philox4x32(1, name).fillNormal(values, 1 / Math.sqrt(width));
  return values;
}

const mib = (bytes: number): string => (bytes / MIB).toFixed(1).padStart(10);

async function lossTable(most: number, width: number): Promise<void> {
  console.log(`sigmoid loss with gradients, width ${String(width)}, float32`);
  console.log('    pairs  planned MiB  per pair B  measured MiB  logits MiB   seconds');
  for (let batch = smallest; batch <= most; batch *= 2) {
    const rows = float32(batch, width);
    const program = compile(
      'loss',
      (inputs: Record<'images' | 'texts' | 'logitScale' | 'logitBias', Tensor>) => {
        const { images, texts, logitScale, logitBias } = inputs;
        const loss = sigmoidLoss(images, texts, logitScale, logitBias);
        return { loss, gradients: gradient(loss, inputs) };
      },
      { images: rows, texts: rows, logitScale: float32(1), logitBias: float32(1) },
    );
    const { peakBytes } = program.memory;
    const before = process.memoryUsage.rss();
    const inputs = {
      images: DeviceArray.from(unitRows(batch, width, 'images'), [batch, width]),
      texts: DeviceArray.from(unitRows(batch, width, 'texts'), [batch, width]),
      logitScale: DeviceArray.from(Float32Array.of(Math.log(10))),
      logitBias: DeviceArray.from(Float32Array.of(-10)),
    };
    const began = performance.now();
    const outputs = await program.run(inputs);
    const seconds = (performance.now() - began) / 1000;
    const grown = Math.max(process.memoryUsage.rss(), mostResident()) - before;
    console.log(
      `${String(batch).padStart(9)} ${mib(peakBytes)}   ${(peakBytes / batch).toFixed(0).padStart(10)}  ${mib(grown)}    ${mib(4 * batch * batch)}  ${seconds.toFixed(2).padStart(8)}`,
    );
    disposeArrays([inputs, outputs]);
    program.dispose();
  }
}

async function stepTable(batch: number): Promise<void> {
  const preset = emojiPreset('animals-food-3');
  const { model, optimizer, initialLogits } = emojiRecipe(preset, 'towers', 2048, { batch });
  const pixels = new Uint8Array(batch * preset.size ** 2 * 3);
  const table = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);
  const random = new Philox4x32(2, 'step');
  for (const i of pixels.keys()) pixels[i] = random.integer(256);
  const ids = Int32Array.from({ length: batch * model.text.length }, () => random.integer(2048));
  console.log(`one training step of ${String(batch)} pairs, model of the demo, float32`);
  console.log(
    '  micro-batches of  towers MiB  loss MiB  peak MiB  host MiB  compiled s    step s      loss',
  );
  for (let microBatches = 16; microBatches <= 1024; microBatches *= 4) {
    const rows = batch / microBatches;
    const began = performance.now();
    const config = { model, batch: rows, microBatches, optimizer };
    const step = compileTwoTowersCachedStep(config);
    const compiled = (performance.now() - began) / 1000;
    const array = (spec: Parameters<typeof initialValues>[0]): DeviceArray =>
      DeviceArray.from(initialValues(spec, 0), spec.shape);
    const zeros = (): ReturnType<typeof twoTowersParameters<DeviceArray>> =>
      twoTowersParameters<DeviceArray>(model, (spec) => DeviceArray.zeros(spec));
    const parameters = twoTowersParameters<DeviceArray>(model, array, initialLogits);
    const state = { m: zeros(), v: zeros() };
    const started = performance.now();
    const outputs = await step.run({
      parameters,
      state,
      averages: {},
      schedule: scheduleInput(1, 0, optimizer),
      entered: {},
      batches: Array.from({ length: microBatches }, (_, i) => ({
        images: {
          pixels: pixels.subarray(
            (i * pixels.length) / microBatches,
            ((i + 1) * pixels.length) / microBatches,
          ),
          table,
        },
        texts: ids.subarray((i * ids.length) / microBatches, ((i + 1) * ids.length) / microBatches),
      })),
    });
    const seconds = (performance.now() - started) / 1000;
    const [loss] = await outputs.loss.read();
    const { towerBytes, lossBytes, peakBytes, hostBytes } = step.memory;
    console.log(
      `${String(microBatches).padStart(8)} × ${String(rows).padStart(4)} ${mib(towerBytes)}${mib(lossBytes)}${mib(peakBytes)}${mib(hostBytes)}  ${compiled.toFixed(2).padStart(10)}  ${seconds.toFixed(2).padStart(8)}  ${loss.toFixed(5)}`,
    );
    disposeArrays([parameters, state]);
    disposeArrays([
      outputs.loss,
      outputs.terms,
      outputs.gradientNorm,
      outputs.updateNorm,
      outputs.parameterNorm,
    ]);
    step.dispose();
  }
}

async function main(): Promise<void> {
  const command = new Command('bench:loss')
    .option('--most <n>', 'pairs of the largest loss', '65536')
    .option('--width <n>', 'of embeddings', '128')
    .option('--step', 'a training step in micro-batches instead of the loss')
    .option('--batch <n>', 'pairs of that step', '4096');
  const options = command
    .parse()
    .opts<{ most: string; width: string; batch: string; step?: boolean }>();
  if (options.step === true) await stepTable(integer('batch', options.batch, 1024));
  else await lossTable(integer('most', options.most, smallest), integer('width', options.width, 1));
}

void main();
