// NaFlex training (SigLIP 2, arXiv 2502.14786 §2.4.2): the sigmoid loss over batches of one of several
// lengths, packed, each with a program of its own.
import type { NaflexLengths } from '../data';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model';
import { parameterTable, twoTowersParameters } from '../model';
import type { Objective } from './objective';
import { admitPacked, twoTowersObjectiveStep } from './two_towers';

export interface NaflexObjectiveConfig {
  readonly model: ModelConfig;
  /** Those of the stream of batches. */
  readonly lengths: NaflexLengths;
  /** Compute blocks again in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
}

/**
 * The sigmoid loss over packed batches. A half batch moves the schedule by half an update; the published
 * run covers the last tenth of its schedule, stretched 3.75 times: `{ start: 0.9 · T, stretch: 3.75 }`.
 *
 * @throws ERR_CONFIG when the model's layout is not NaFlex
 */
export function naflexObjective({ model, lengths, checkpoint }: NaflexObjectiveConfig): Objective {
  if (model.vision.layout !== 'naflex') {
    throw new SiglipError(
      'ERR_CONFIG',
      `naflexObjective: vision.layout must be naflex, got ${model.vision.layout}`,
    );
  }
  const formOf = (name: string): NaflexLengths['forms'][number] => {
    const found = lengths.forms.find(({ length }) => String(length) === name);
    if (found !== undefined) return found;
    const known = lengths.forms.map(({ length }) => length);
    throw new SiglipError(
      'ERR_DATA',
      `train: length of a batch must be one of ${known.join(', ')}, got ${name}`,
    );
  };
  return {
    model,
    batch: lengths.fullBatch,
    identity: { model, lengths: lengths.forms },
    parameters: parameterTable(model),
    averages: [],
    forms: lengths.forms.map(({ length }) => String(length)),
    parametersTree: (build, initial) => twoTowersParameters(model, build, initial),
    averagesTree: () => ({}),
    step: (name) => {
      const { batch, rows } = formOf(name);
      return twoTowersObjectiveStep({ model, batch, rows, checkpoint });
    },
    admit: ({ packed, tokens }) => {
      const form = String(packed?.length);
      const length = formOf(form);
      if (packed === undefined) throw new Error('train: a batch of a known length must be packed');
      return {
        form,
        pairs: length.batch,
        inputs: admitPacked(model, length, packed, tokens),
      };
    },
  };
}
