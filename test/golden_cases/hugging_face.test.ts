// Checkpoints in Hugging Face layout, loaded from their folder by the product, against the numbers of
// SiglipModel and Siglip2Model.
import { Siglip2 } from '../../lib/embed';
import { flatten } from '../../lib/graph';
import type { DeviceArray } from '../../lib/array';
import { loadCheckpoint } from '../../lib/weights';
import { expectEmbeddings, huggingFaceBars, huggingFaceNames } from './embeddings';
import { describeGolden } from './golden';
import { hostValues, runTwoTowers } from './product';
import { expectHuggingFace, huggingFaceCase } from './subject';

for (const name of huggingFaceNames) {
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
      expectHuggingFace(golden, run, huggingFaceBars);
    });

    test('embedImages and embedTexts of prepared inputs', async () => {
      const model = await Siglip2.load(golden.folder);
      try {
        await expectEmbeddings(golden, model);
      } finally {
        model.dispose();
      }
    });
  });
}
