// Names of the hub. A name becomes part of paths and addresses, so only what the hub itself allows
// gets through.
import { SiglipError } from '../../errors';

/** A model of the hub at a revision. */
export interface HubName {
  /** `owner/name`. */
  readonly id: string;
  /** Branch, tag or commit. */
  readonly revision: string;
}

const EXAMPLE = 'google/siglip2-base-patch16-224';
const DEFAULT_REVISION = 'main';
// The hub's rule: letters, digits, - _ . ; no -- and no .. ; begins and ends with a letter or digit.
const PART = /^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?$/u;
// git's rule of reference names, narrowed to what is safe in a path on every system.
const REVISION = /^[A-Za-z0-9_][A-Za-z0-9._+-]*(?:\/[A-Za-z0-9_][A-Za-z0-9._+-]*)*$/u;

/** Whether a revision is a full commit, which never means anything else later. */
export function isCommit(revision: string): boolean {
  return /^[0-9a-f]{40}$/u.test(revision);
}

/**
 * Reads `owner/name` or `owner/name@revision`.
 *
 * @param who - named in errors
 * @param revision - must not contradict the one in `source`. Default `main`.
 * @throws SiglipError ERR_FILE for what can only be a path, ERR_ARGUMENT for a name that cannot be one
 */
export function parseHubName(who: string, source: string, revision?: string): HubName {
  expectNoPath(who, source);
  const [id, inName, ...more] = source.split('@');
  const parts = id.split('/');
  if (parts.length === 1 && more.length === 0 && isPart(id)) throw withoutOwner(who, source, id);
  if (parts.length !== 2 || !parts.every(isPart) || id.length > 96 || more.length > 0) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: source must be a folder or a hub id such as ${EXAMPLE}, got ${JSON.stringify(source)}`,
    );
  }
  if (inName !== undefined && revision !== undefined && inName !== revision) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `${who}: revision must be given once, got ${inName} in ${source} and ${revision} as an option`,
    );
  }
  return { id, revision: admitRevision(who, inName ?? revision ?? DEFAULT_REVISION) };
}

function admitRevision(who: string, revision: string): string {
  const isSafe =
    REVISION.test(revision) &&
    !/\.\.|\.lock(?:\/|$)|\.(?:\/|$)/u.test(revision) &&
    revision.length <= 200;
  if (isSafe) return revision;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: revision must be a branch, a tag or a commit, got ${JSON.stringify(revision)}`,
  );
}

function isPart(part: string): boolean {
  return PART.test(part) && !/--|\.\./u.test(part) && !part.endsWith('.git');
}

// What looks like a path and is not there is a mistyped path; nothing is asked of the hub.
function expectNoPath(who: string, source: string): void {
  const isPath =
    /^(?:[./~\\]|[A-Za-z]:)|\\|\/$/u.test(source) || source.split('/').length > 2 || source === '';
  if (!isPath) return;
  throw new SiglipError(
    'ERR_FILE',
    `${who}: source must be a folder, got ${source === '' ? 'an empty name' : source}, which does not exist\n` +
      `to do: check the path, or give a hub id such as ${EXAMPLE}.`,
  );
}

function withoutOwner(who: string, source: string, name: string): SiglipError {
  const guess = /^siglip2?-/u.test(name)
    ? `did you mean google/${source}? Names in full are like ${EXAMPLE}.`
    : `give a hub id with its owner, such as ${EXAMPLE}.`;
  return new SiglipError(
    'ERR_ARGUMENT',
    `${who}: source must be an existing folder or a hub id owner/name, got ${source}\nto do: ${guess}`,
  );
}
