// The model of a stage, in Hugging Face layout with its tokenizer, and its decoder beside it.
import { cp, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { defaultCaptionFormat } from '../model';
import type { Recipe, Stage, Trainer } from '../train';
import { stageDecoder, stageFolder, stageModel } from '../train';
import { defaultPreprocessor, saveCheckpoint, saveDecoder } from '../weights';

/** Where the model of a stage goes: `model` in the run folder; of several stages each has its own. */
export function modelFolder(folder: string, recipe: Recipe, stage: Stage): string {
  return join(recipe.stages.length === 1 ? folder : stageFolder(folder, stage), 'model');
}

/**
 * Saves what a stage has trained.
 *
 * @param tokenizer - folder whose files go with the model
 * @throws ERR_FILE
 */
export async function saveStage(
  recipe: Recipe,
  stage: Stage,
  { parameters }: Trainer,
  target: string,
  tokenizer: string,
): Promise<void> {
  await mkdir(target, { recursive: true });
  for (const file of ['tokenizer.json', 'tokenizer.model', 'tokenizer_config.json']) {
    await cp(join(tokenizer, file), join(target, file)).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    });
  }
  const config = stageModel(recipe, stage);
  const preprocessor = defaultPreprocessor(config);
  const { vision, text, logitScale, logitBias, decoder } = parameters;
  const towers = { vision, text, logitScale, logitBias };
  await saveCheckpoint(target, { config, parameters: towers, preprocessor });
  if (decoder !== undefined) {
    await saveDecoder(target, {
      config: stageDecoder(recipe, config),
      format: defaultCaptionFormat,
      parameters: decoder,
    });
  }
}
