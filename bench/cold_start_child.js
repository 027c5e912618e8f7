'use strict';
// One engine from process start to its first embedding, then a line with the peak of resident memory.
//
//   node cold_start_child.js ENGINE FOLDER FILE SIDE THREADS [PRECISION]
//
// ours, onnxruntime: an image of prepared pixels; FILE is the ONNX file of the latter.
// ours-jpeg, transformers: FILE is a JPEG; ONNX is `FOLDER`/SUBFOLDER, given as PRECISION.

const { join, basename, dirname } = require('node:path');
const { createRequire } = require('node:module');

const [engine, folder, file, side, threads, option] = process.argv.slice(2);
const peer = createRequire(join(__dirname, 'peers', 'package.json'));
const size = Number(side);
const options = { intraOpNumThreads: Number(threads), interOpNumThreads: 1 };

async function embed() {
  const pixels = new Float32Array(3 * size * size).fill(0.25);
  if (engine.startsWith('ours')) {
    const { Siglip2 } = require('../dist/lib');
    const model = await Siglip2.load(folder, { precision: option });
    const image = engine === 'ours' ? { pixelValues: pixels } : file;
    return (await model.embedImages([image], { normalize: false }))[0];
  }
  if (engine === 'onnxruntime') {
    const ort = peer('onnxruntime-node');
    const session = await ort.InferenceSession.create(file, {
      executionProviders: ['cpu'],
      graphOptimizationLevel: 'all',
      ...options,
    });
    const feeds = { pixel_values: new ort.Tensor('float32', pixels, [1, 3, size, size]) };
    return (await session.run(feeds)).pooler_output.data;
  }
  const { env, SiglipVisionModel, AutoProcessor, RawImage } = peer('@huggingface/transformers');
  env.allowRemoteModels = false;
  env.localModelPath = `${dirname(folder)}/`;
  const processor = await AutoProcessor.from_pretrained(basename(folder), {
    local_files_only: true,
  });
  const model = await SiglipVisionModel.from_pretrained(basename(folder), {
    local_files_only: true,
    use_external_data_format: true,
    subfolder: option,
    dtype: option.includes('float32') ? 'fp32' : 'q8',
    session_options: options,
  });
  const { pooler_output } = await model(await processor([await RawImage.read(file)]));
  return pooler_output.data;
}

embed().then((embedding) => {
  const { maxRSS } = process.resourceUsage();
  process.stdout.write(`${JSON.stringify({ width: embedding.length, maxRSS })}\n`, () => {
    process.exit(0);
  });
});
