// The numbers of the original implementations through a GPU, in float32 at the bars of the CPU.
import type { Device } from '../../lib/array';
import { Siglip2 } from '../../lib/embed';
import { readModelConfig } from '../../lib/weights';
import type { Bars } from '../golden_cases/close';
import { expectEmbeddings, huggingFaceBars, huggingFaceNames } from '../golden_cases/embeddings';
import { GoldenCase } from '../golden_cases/golden';
import { configOf, hostParameters, runTwoTowers, runVision } from '../golden_cases/product';
import { train } from '../golden_cases/product_training';
import {
  expectHuggingFace,
  expectNaflex,
  expectTwoTowersFixed,
  huggingFaceCase,
  naflexCase,
  twoTowersFixedCase,
} from '../golden_cases/subject';
import { expectFinalParameters, expectStep, trainingCase } from '../golden_cases/training';
import type { Group, Runner } from './runner';
import { must } from './runner';

// What the cases suggest.
const SUGGESTED: Bars = {
  state: (_, suggested = 0) => suggested,
  gradient: (_, suggested = 0) => suggested,
};

type GoldenBody = (golden: GoldenCase) => Promise<void>;

function declare(group: Group, name: string, tests: Readonly<Record<string, GoldenBody>>): void {
  const golden = new GoldenCase(name);
  for (const [what, body] of Object.entries(tests)) {
    if (golden.present) group.test(`${name}: ${what}`, () => body(golden));
    else group.skip(`${name}: ${what}`, 'the golden numbers are not here (SIGLIP2_GOLDEN)');
  }
}

/** Towers of Hugging Face and big_vision, and twenty steps of training. */
export function declareGoldens(runner: Runner, device: Device): void {
  const group = runner.group('golden numbers');
  for (const name of huggingFaceNames) {
    declare(group, name, {
      'hidden states, embeddings, logits, loss and every gradient': async (golden) => {
        const subject = huggingFaceCase(golden);
        const config = await readModelConfig(golden.folder);
        const parameters = hostParameters(config, subject.parameters);
        const run = await runTwoTowers(config, parameters, subject, device);
        expectHuggingFace(golden, run, huggingFaceBars);
      },
      'embedImages and embedTexts': async (golden) => {
        const model = await Siglip2.load(golden.folder, { device });
        try {
          must(model.device === device, () => `device must be ${device}, got ${model.device}`);
          await expectEmbeddings(golden, model);
        } finally {
          model.dispose();
        }
      },
    });
  }
  declare(group, 'bv_two_towers_fixed', {
    'every intermediate, loss and every gradient': async (golden) => {
      const subject = twoTowersFixedCase(golden);
      const config = configOf(subject);
      const parameters = hostParameters(config, subject.parameters);
      expectTwoTowersFixed(
        golden,
        await runTwoTowers(config, parameters, subject, device),
        SUGGESTED,
      );
    },
  });
  declare(group, 'bv_naflex', {
    'every intermediate of the valid rows and every gradient': async (golden) => {
      expectNaflex(golden, await runVision(naflexCase(golden), 'padded', device), SUGGESTED);
    },
    'the same without padding': async (golden) => {
      expectNaflex(golden, await runVision(naflexCase(golden), 'packed', device), SUGGESTED);
    },
  });
  declare(group, 'bv_train_20', {
    'twenty steps: losses, norms and final parameters': async (golden) => {
      const { records, final } = await train(golden, trainingCase(golden).steps, false, device);
      records.forEach((record, step) => {
        expectStep(golden, step, record);
      });
      expectFinalParameters(golden, final, 2e-5);
    },
    'repeats bit for bit, with and without activation checkpointing': async (golden) => {
      const plain = await train(golden, 3, false, device);
      for (const checkpoint of [false, true]) {
        const again = await train(golden, 3, checkpoint, device);
        must(
          JSON.stringify(again.records) === JSON.stringify(plain.records),
          () => `losses and norms must repeat (checkpoint ${String(checkpoint)})`,
        );
        for (const [path, values] of plain.final) {
          const other = again.final.get(path);
          must(
            other !== undefined && values.every((value, i) => Object.is(value, other[i])),
            () => `${path} must repeat (checkpoint ${String(checkpoint)})`,
          );
        }
      }
    },
  });
}
