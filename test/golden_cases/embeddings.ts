// What a loaded model of a Hugging Face case must give for the case's prepared inputs.
import type { Siglip2 } from '../../lib/embed';
import type { NdArray } from '../reference/nd_array';
import { maxAbs, ndArray } from '../reference/nd_array';
import type { Bars } from './close';
import { expectClose, within } from './close';
import type { GoldenCase } from './golden';
import { huggingFaceCase } from './subject';

/** The cases of Hugging Face's models. */
export const huggingFaceNames = ['hf_fixed', 'hf_naflex', 'hf_so400m_like', 'hf_giant_like'];

// Where a gradient is exactly zero (key biases), relative to itself means nothing.
export const huggingFaceBars: Bars = {
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
  if (rows.length !== expected.shape[0]) {
    throw new Error(
      `${name}: must have ${String(expected.shape[0])} rows, got ${String(rows.length)}`,
    );
  }
  rows.forEach((row, i) => {
    expectClose(`${name}[${String(i)}]`, row, at(expected, i), huggingFaceBars.state);
  });
}

/** Embeddings of the images and texts of a case, as they are and of unit length. */
export async function expectEmbeddings(golden: GoldenCase, model: Siglip2): Promise<void> {
  const { images, ids } = huggingFaceCase(golden);
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
}
