// What curation scores pairs by.
import { Option } from 'commander';
import type { ScoreLoss } from '../ops';
import { scoreLosses, scoreWeights } from '../ops';
import type { CurationConfig } from '../train';

/** `--score` */
export function scoreOption(): Option {
  return new Option('--score <score>', 'what a pair is selected for')
    .choices(Object.keys(scoreWeights))
    .default('learnability' satisfies CurationConfig['score']);
}

/** `--score-loss` */
export function scoreLossOption(): Option {
  return new Option('--score-loss <loss>', 'losses that scores are made of')
    .choices(scoreLosses)
    .default('sigmoid' satisfies ScoreLoss);
}
