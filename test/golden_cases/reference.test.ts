// The float64 reference is the oracle of every other test; here it is held to the numbers of the
// original implementations, which were computed in float64 too and rounded once to float32.
import { runTwoTowers, runVision } from '../reference/model';
import { inner, item } from '../reference/nd_array';
import { Trainer } from '../reference/train';
import { leaves } from '../reference/tree';
import type { Bars } from './close';
import { withinScale } from './close';
import { describeGolden } from './golden';
import type { Numbers, Run, TwoTowersCase } from './subject';
import {
  expectHuggingFace,
  expectNaflex,
  expectTwoTowersFixed,
  huggingFaceCase,
  naflexCase,
  twoTowersFixedCase,
} from './subject';
import { expectStep, trainingCase } from './training';

// A few roundings to float32; gradients that are exactly zero are compared absolutely.
const BARS: Bars = { state: withinScale(3e-7, 1e-7), gradient: withinScale(3e-7, 1e-9) };

function numbers(tree: object): Numbers {
  return new Map(leaves(tree).map(([path, leaf]) => [path, leaf.data]));
}

function run(golden: TwoTowersCase): Run {
  const result = runTwoTowers(golden.parameters, golden.images, golden.ids, {
    vision: { heads: golden.visionHeads },
    text: { heads: golden.textHeads },
    patch: golden.patch,
  });
  const taps = [...result.vision.taps, ...result.text.taps];
  return {
    taps: new Map(taps.map(([name, value]) => [name, value.data])),
    loss: result.loss.data,
    gradients: numbers(result.gradients),
    gradientsWrt: new Map([
      ['vision.embedding', result.dimageEmbeddings.data],
      ['text.embedding', result.dtextEmbeddings.data],
      ['input', result.dinput.data],
    ]),
  };
}

describe('reference', () => {
  for (const name of ['hf_fixed', 'hf_naflex', 'hf_so400m_like', 'hf_giant_like']) {
    describeGolden(name, (golden) => {
      test('hidden states, embeddings, loss and every gradient', () => {
        expectHuggingFace(golden, run(huggingFaceCase(golden)), BARS);
      });
    });
  }

  describeGolden('bv_two_towers_fixed', (golden) => {
    test('every intermediate, loss and every gradient', () => {
      expectTwoTowersFixed(golden, run(twoTowersFixedCase(golden)), BARS);
    });
  });

  describeGolden('bv_naflex', (golden) => {
    test('every intermediate of the valid rows and every gradient', () => {
      const { parameters, images, heads, cotangent } = naflexCase(golden);
      const result = runVision(parameters, images, { heads }, 0);
      const { dp, dinput } = result.backwardPooled(cotangent);
      const subject: Run = {
        taps: new Map([...result.taps].map(([tap, value]) => [tap, value.data])),
        loss: [inner(result.pooled, cotangent)],
        gradients: numbers(dp),
        gradientsWrt: new Map([['input', dinput.data]]),
      };
      expectNaflex(golden, subject, BARS);
    });
  });

  describeGolden('bv_train_20', (golden) => {
    // All twenty take a while in plain loops; a wrong optimizer shows in the first few.
    test('the first updates: schedule, loss, every norm, scale and bias', () => {
      const { parameters, recipe, batch, ...config } = trainingCase(golden);
      const trainer = new Trainer(
        parameters,
        {
          vision: { heads: config.visionHeads },
          text: { heads: config.textHeads },
          patch: config.patch,
        },
        recipe,
      );
      for (let step = 0; step < 4; step++) {
        const { images, ids } = batch(step);
        const record = trainer.update(images, ids);
        expectStep(golden, step, {
          ...record,
          logitScale: item(trainer.parameters.logitScale),
          logitBias: item(trainer.parameters.logitBias),
        });
      }
    });
  });
});
