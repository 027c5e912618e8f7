// The whole recipe, every stage and loss, at the smallest size, on noise.
import { Philox4x32 } from '../../lib/array/random';
import { NaflexLengths, PairSource, pairTable, StageBatchStream } from '../../lib/data';
import type { Batch, PairTable, Stream } from '../../lib/data';
import { NaflexProcessor } from '../../lib/image';
import { variant } from '../../lib/model';
import type { RanksConfig, Recipe, Stage } from '../../lib/train';
import {
  batchParts,
  defaultOptimizer,
  naflexLengthOptions,
  smallRecipe,
  stageModel,
  streamBatch,
} from '../../lib/train';
import { defaultPreprocessor } from '../../lib/weights';
import { characterTokenizer } from '../text/small_tokenizer';

const tokenizer = characterTokenizer();
const base = variant('mu/8', { imageSize: 32, vocabulary: tokenizer.vocabulary, length: 8 });
export const batch = 4;

export const recipe: Recipe = smallRecipe({
  name: 'smallest',
  model: base,
  batch,
  totalSteps: 20,
  warmupSteps: 2,
  optimizer: { ...defaultOptimizer, learningRate: 3e-3 },
  initialLogits: { logitBias: -2 },
  seed: 3,
  decoder: { depth: 1, length: 24 },
  selfDistillation: { hidden: 16, bottleneck: 8, prototypes: 32, patchPrototypes: 24 },
  resolutions: [{ imageSize: 48 }],
  naflexLengths: [4, 16],
  sizeFactor: 0.25,
  curation: { reference: 'C', filterRatio: 0.5, chunks: 2 },
});

export const pixelTable = Float32Array.from({ length: 768 }, (_, i) => -1 + ((i % 256) / 255) * 2);

function table(): PairTable {
  const random = new Philox4x32(8, 'recipe test');
  const count = 12;
  return pairTable({
    name: 'noise',
    size: 48,
    pixels: Uint8Array.from({ length: count * 48 * 48 * 3 }, () => random.integer(256)),
    concepts: Int32Array.from({ length: count }, (_, i) => i),
    texts: Array.from({ length: count }, (_, i) => [{ text: `name ${String(i)}`, weight: 1 }]),
    tokenize: (all) => tokenizer.encode(all, 8),
  });
}

/** Opens the batches of a stage, a rank's part of each. */
export function openStream(
  of: Recipe,
  ranks?: RanksConfig,
): (stage: Stage) => Promise<Stream<Batch>> {
  const source = new PairSource(table());
  return (stage) => {
    const model = stageModel(of, stage);
    const preprocessor = defaultPreprocessor(model);
    const fixed = model.vision.layout === 'fixed';
    return Promise.resolve(
      new StageBatchStream(source, {
        batch: streamBatch(of, stage),
        ...(ranks === undefined ? {} : { rank: ranks.comm.rank, ranks: ranks.comm.size }),
        seed: of.seed,
        augment: { scale: [0.5, 0.9] },
        parts: batchParts(of, stage),
        size: model.vision.layout === 'fixed' ? model.vision.imageSize : undefined,
        naflex:
          fixed || preprocessor.layout === 'fixed'
            ? undefined
            : {
                lengths: new NaflexLengths(naflexLengthOptions(of, stage)),
                processor: new NaflexProcessor(preprocessor),
              },
        tokenizer,
      }),
    );
  };
}
