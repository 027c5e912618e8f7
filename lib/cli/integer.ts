// Whole numbers among the options.
import { SiglipError } from '../errors';

/** A whole number of the command line. @throws ERR_ARGUMENT */
export function integer(flag: string, text: string, least: number): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= least) return value;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `--${flag} must be a whole number from ${String(least)}, got ${text}`,
  );
}
