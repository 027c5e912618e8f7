// What decides how the hub is reached: options first, then the environment variables that Python's
// huggingface_hub reads, so that one set-up serves both.
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { SiglipError } from '../../errors';

/** How files of the hub are found and fetched. What is left out follows the environment. */
export interface HubOptions {
  /** Branch, tag or commit. Default `main`. */
  readonly revision?: string;
  /**
   * The shared cache. Default `HF_HUB_CACHE`, else `$HF_HOME/hub`, else
   * `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
   */
  readonly cacheDir?: string;
  /** Never use the network. Default: whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is set. */
  readonly offline?: boolean;
  /**
   * Access token. Default `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `$HF_HOME/token`. `false`
   * sends none. It goes to the endpoint only, never to where the endpoint redirects.
   */
  readonly token?: string | false;
  /** Address of the hub or of a mirror. Default `HF_ENDPOINT`, else `https://huggingface.co`. */
  readonly endpoint?: string;
  /** Called about ten times a second while files are fetched, and after every file. */
  readonly onProgress?: (progress: DownloadProgress) => void;
  /** Ends the call with ERR_ABORTED; what was fetched is kept and continued by the next call. */
  readonly signal?: AbortSignal;
}

/** How far a download is. */
export interface DownloadProgress {
  /** The file that has just grown, as the repository names it. */
  readonly file: string;
  /** Bytes of all files that are here, those of earlier attempts included. */
  readonly bytes: number;
  /** Bytes of all files of this download. */
  readonly total: number;
  /** Bytes per second over the last few seconds. */
  readonly rate: number;
}

/** {@link HubOptions} with every default filled in. */
export interface HubEnvironment {
  readonly cacheDir: string;
  /** Without a slash at the end. */
  readonly endpoint: string;
  /** Why the network must not be used, for messages; undefined when it may. */
  readonly offline: string | undefined;
  readonly token: { readonly value: string; readonly from: string } | undefined;
  /** Longest wait for the next byte. */
  readonly timeoutMs: number;
  /** False: snapshots hold files instead of links. */
  readonly symlinks: boolean;
}

const DEFAULT_ENDPOINT = 'https://huggingface.co';
const DEFAULT_TIMEOUT_S = 30;

/** Where the shared cache is. */
export function hubCacheDir(cacheDir?: string): string {
  const chosen = cacheDir ?? variable('HF_HUB_CACHE') ?? variable('HUGGINGFACE_HUB_CACHE');
  return resolve(chosen === undefined ? join(hubHome(), 'hub') : expanded(chosen));
}

/**
 * Fills in what the options leave out.
 *
 * @throws SiglipError ERR_ARGUMENT for an endpoint or a token that cannot be one
 */
export function hubEnvironment(who: string, options: HubOptions = {}): HubEnvironment {
  const seconds = Number(variable('HF_HUB_DOWNLOAD_TIMEOUT') ?? DEFAULT_TIMEOUT_S);
  return {
    cacheDir: hubCacheDir(options.cacheDir),
    endpoint: endpointOf(who, options.endpoint ?? variable('HF_ENDPOINT') ?? DEFAULT_ENDPOINT),
    offline: offlineReason(options.offline),
    token: tokenOf(who, options.token),
    timeoutMs: 1000 * (seconds > 0 ? seconds : DEFAULT_TIMEOUT_S),
    symlinks: !isOn('HF_HUB_DISABLE_SYMLINKS'),
  };
}

function hubHome(): string {
  const home = variable('HF_HOME');
  if (home !== undefined) return expanded(home);
  const cache = variable('XDG_CACHE_HOME');
  return join(cache === undefined ? join(homedir(), '.cache') : expanded(cache), 'huggingface');
}

function endpointOf(who: string, text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isPlain =
    url !== undefined && [url.username, url.password, url.search, url.hash].every((s) => s === '');
  if (isPlain && /^https?:$/u.test(url.protocol)) {
    return url.origin + url.pathname.replace(/\/+$/u, '');
  }
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: endpoint must be an http or https address, got ${JSON.stringify(text)}`,
  );
}

function offlineReason(offline: boolean | undefined): string | undefined {
  if (offline !== undefined) return offline ? 'the option offline is set' : undefined;
  const name = ['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'].find(isOn);
  return name === undefined ? undefined : `${name} is set`;
}

function tokenOf(who: string, option: string | false | undefined): HubEnvironment['token'] {
  if (option === false) return undefined;
  const found =
    option === undefined ? foundToken() : { value: option.trim(), from: 'the option token' };
  if (found === undefined || found.value === '') return undefined;
  // A header holds visible ASCII. The value is a secret and stays out of the message.
  if (/^[\x21-\x7e]+$/u.test(found.value)) return found;
  throw new SiglipError(
    'ERR_ARGUMENT',
    `${who}: token from ${found.from} must be visible ASCII characters, got others among ${String(found.value.length)}`,
  );
}

function foundToken(): HubEnvironment['token'] {
  if (isOn('HF_HUB_DISABLE_IMPLICIT_TOKEN')) return undefined;
  for (const name of ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN']) {
    const value = variable(name);
    if (value !== undefined) return { value, from: name };
  }
  const path = expanded(variable('HF_TOKEN_PATH') ?? join(hubHome(), 'token'));
  try {
    return { value: readFileSync(path, 'utf8').trim(), from: path };
  } catch {
    // Nobody has logged in here.
    return undefined;
  }
}

function isOn(name: string): boolean {
  return ['1', 'ON', 'YES', 'TRUE'].includes(variable(name)?.toUpperCase() ?? '');
}

// A variable set to nothing is as good as none.
function variable(name: string): string | undefined {
  const value = process.env[name]?.trim();
  return value === '' ? undefined : value;
}

function expanded(path: string): string {
  return /^~(?=$|[\\/])/u.test(path) ? join(homedir(), path.slice(1)) : path;
}
