// `siglip2 convert`: a checkpoint for images of another size, with another patch or in another layout.
import { Command, Option } from 'commander';
import type { PositionMethod } from '../model';
import { parameterCount, parameterTable, positionMethods } from '../model';
import { convertCheckpoint } from '../weights';
import { integer } from './integer';
import { MODEL_HELP, modelFolder } from './model';

const dtypes = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;

interface Options {
  readonly output: string;
  readonly imageSize?: string;
  readonly patch?: string;
  readonly naflex?: boolean;
  readonly grid?: string;
  readonly positions: PositionMethod;
  readonly dtype: keyof typeof dtypes;
  readonly tokenizer?: string;
  readonly sourceImageSize?: string;
}

/** The command. */
export function convertCommand(): Command {
  return new Command('convert')
    .description(
      'adapt a model to another image size, patch or layout, or bring an .npz of big_vision into Hugging Face layout',
    )
    .argument('<model>', `${MODEL_HELP}, or an .npz of big_vision`)
    .requiredOption('-o, --output <folder>', 'folder of the new model')
    .option('--image-size <n>', 'side of its images in pixels; of a NaFlex model, makes it fixed')
    .option('--patch <n>', 'side of its patches in pixels; the kernel is resized by PI-resize')
    .option('--naflex', 'for images of any shape')
    .option('--grid <n>', 'side of the grid of positions of a NaFlex model; default 16')
    .addOption(
      new Option('--positions <method>', 'how positions are resized')
        .choices(positionMethods)
        .default('linear' satisfies PositionMethod),
    )
    .addOption(
      new Option('--dtype <dtype>', 'how weights are stored')
        .choices(Object.keys(dtypes))
        .default('float32' satisfies Options['dtype']),
    )
    .option('--tokenizer <folder>', 'whose tokenizer is copied; default the model’s own')
    .option('--source-image-size <n>', 'of an .npz whose patches leave pixels over')
    .action(convert);
}

async function convert(model: string, flags: Options): Promise<void> {
  const count = (flag: string, text: string | undefined): number | undefined =>
    text === undefined ? undefined : integer(flag, text, 1);
  const imageSize = count('image-size', flags.imageSize);
  const grid = count('grid', flags.grid);
  const naflex = flags.naflex === true ? 'naflex' : undefined;
  const config = await convertCheckpoint(
    model.endsWith('.npz') ? model : await modelFolder(model),
    flags.output,
    {
      imageSize,
      patch: count('patch', flags.patch),
      layout: naflex ?? (imageSize === undefined ? undefined : 'fixed'),
      positions: grid === undefined ? undefined : grid * grid,
      positionMethod: flags.positions,
      dtype: dtypes[flags.dtype],
      tokenizer: flags.tokenizer,
      sourceImageSize: count('source-image-size', flags.sourceImageSize),
    },
  );
  const { vision } = config;
  const shape = vision.layout === 'fixed' ? `${String(vision.imageSize)} pixels` : 'NaFlex';
  const parameters = parameterCount(parameterTable(config));
  process.stdout.write(
    `${flags.output}: patch ${String(vision.patch)}, ${shape}, ${String(parameters)} parameters\n`,
  );
}
