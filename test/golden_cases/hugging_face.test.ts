// Checkpoints in Hugging Face layout, loaded from their folder by the product, against the numbers of
// SiglipModel and Siglip2Model.
import { Siglip2 } from '../../lib/embed';
import { flatten } from '../../lib/graph';
import type { DeviceArray } from '../../lib/array';
import { loadCheckpoint } from '../../lib/weights';
import type { NdArray } from '../reference/nd_array';
import { maxAbs, ndArray } from '../reference/nd_array';
import type { Bars } from './close';
import { expectClose, within } from './close';
import type { GoldenCase } from './golden';
import { describeGolden } from './golden';
import { hostValues, runTwoTowers } from './product';
import { expectHuggingFace, huggingFaceCase } from './subject';

// Where a gradient is exactly zero (key biases), relative to itself means nothing.
const BARS: Bars = {
  state: within(2e-5),
  gradient: (expected) => (maxAbs(expected) < 1e-12 ? 1e-6 : 1e-4 * maxAbs(expected)),
};

/** Image i of a batch. */
function at(x: NdArray, i: number): NdArray {
  const size = x.data.length / x.shape[0];
  return ndArray(x.shape.slice(1), x.data.subarray(i * size, (i + 1) * size));
}

function expectRows(golden: GoldenCase, rows: readonly Float32Array[], name: string): void {
  const expected = golden.tensor(name, 'golden.safetensors');
  rows.forEach((row, i) => {
    expectClose(`${name}[${String(i)}]`, row, at(expected, i), BARS.state);
  });
  expect(rows).toHaveLength(expected.shape[0]);
}

for (const name of ['hf_fixed', 'hf_naflex', 'hf_so400m_like', 'hf_giant_like']) {
  describeGolden(name, (golden) => {
    test('the loaded parameters are the file, tensor by tensor', async () => {
      const { parameters } = await loadCheckpoint(golden.folder);
      const expected = hostValues(huggingFaceCase(golden).parameters);
      const loaded = flatten(parameters);
      expect(loaded.map(({ path }) => path).sort()).toEqual([...expected.keys()].sort());
      for (const { path, leaf } of loaded) {
        const array = leaf as DeviceArray;
        const values = await array.read();
        array.dispose();
        const wanted = expected.get(path) ?? new Float32Array();
        if (values.length !== wanted.length || !wanted.every((value, i) => value === values[i])) {
          throw new Error(`${path}: must be what the file has`);
        }
      }
    });

    test('hidden states, embeddings, logits, loss and every gradient', async () => {
      const { config, parameters } = await loadCheckpoint(golden.folder);
      const run = await runTwoTowers(config, parameters, huggingFaceCase(golden));
      for (const { leaf } of flatten(parameters)) (leaf as DeviceArray).dispose();
      expectHuggingFace(golden, run, BARS);
    });

    test('embedImages and embedTexts of prepared inputs', async () => {
      const { images, ids } = huggingFaceCase(golden);
      const model = await Siglip2.load(golden.folder);
      try {
        const pictures = Array.from({ length: ids.shape[0] }, (_, i) => {
          if (!('patches' in images)) return { pixelValues: Float32Array.from(at(images, i).data) };
          const [rows, columns] = at(images.shapes, i).data;
          return {
            pixelValues: Float32Array.from(at(images.patches, i).data),
            spatialShape: [rows, columns] as const,
          };
        });
        const texts = Array.from({ length: ids.shape[0] }, (_, i) => ({
          inputIds: Int32Array.from(at(ids, i).data),
        }));
        const raw = { normalize: false };
        expectRows(golden, await model.embedImages(pictures), 'output.image_embedding_normalized');
        expectRows(golden, await model.embedTexts(texts), 'output.text_embedding_normalized');
        expectRows(golden, await model.embedImages(pictures, raw), 'output.image_embedding');
        expectRows(golden, await model.embedTexts(texts, raw), 'output.text_embedding');
      } finally {
        model.dispose();
      }
    });
  });
}
