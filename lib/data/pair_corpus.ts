// A corpus of pairs as sources of rows.
import type { Source } from '../corpus';
import { openCorpus } from '../corpus';
import { SiglipError } from '../errors';
import type { PairCorpus } from './mixture';
import { textNames } from './pair_row';

/**
 * Opens the files of a corpus.
 *
 * @param name - what errors call it
 * @param where - a further field that rows carry along
 * @throws ERR_CONFIG for inputs that hold no pairs; ERR_FILE, ERR_DATA for files that cannot be read
 */
export async function openPairCorpus(
  name: string,
  corpus: PairCorpus,
  where?: string,
): Promise<Source[]> {
  const { inputs, fields = {}, imageRoot, imageStrings } = corpus;
  const keep = [
    ...textNames(fields.text),
    fields.regions ?? 'regions',
    fields.language ?? 'language',
    fields.attributes ?? 'attributes',
    ...(where === undefined ? [] : [where]),
  ];
  const sources = await openCorpus({
    inputs,
    what: 'image',
    fields: { image: fields.image, id: fields.id },
    keep: [...new Set(keep)],
    ...(imageRoot === undefined ? {} : { imageRoot }),
    ...(imageStrings === undefined ? {} : { imageStrings }),
  });
  const images = sources.find(({ idKey }) => idKey !== 'id');
  if (images === undefined) return sources;
  throw new SiglipError(
    'ERR_CONFIG',
    `mixture: inputs of ${name} must be .jsonl, .tar or .parquet files, got ${images.name}`,
  );
}
