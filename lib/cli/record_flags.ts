// How a command reads files of records.
import type { Command } from 'commander';
import { Option } from 'commander';
import type { CorpusOptions } from '../corpus';

/** What {@link withRecordFlags} adds to the options of a command. */
export interface RecordFlags {
  readonly imageField?: string;
  readonly textField?: string;
  readonly idField?: string;
  readonly imageRoot?: string;
  readonly imageAs: 'path' | 'base64';
}

/** Adds the options. */
export function withRecordFlags(command: Command): Command {
  return command
    .option('--image-field <name>', 'field, column or extension of the image; default image')
    .option('--text-field <name>', 'field, column or extension of the text; default text, txt')
    .option('--id-field <name>', 'field or column of the id; default id where there is one')
    .option('--image-root <folder>', 'where image paths in records start and must stay')
    .addOption(
      new Option('--image-as <kind>', 'what a string in the image field is')
        .choices(['path', 'base64'])
        .default('path'),
    );
}

/** The flags for `openCorpus`. */
export function recordOptions(flags: RecordFlags): CorpusOptions {
  return {
    fields: { image: flags.imageField, text: flags.textField, id: flags.idField },
    ...(flags.imageRoot === undefined ? {} : { imageRoot: flags.imageRoot }),
    imageStrings: flags.imageAs,
  };
}

/** Those that were given, by name: what the rows read with them depend on. */
export function recordSettings(flags: RecordFlags): Record<string, string> {
  const settings: Record<string, string> = {};
  const optional = {
    'image field': flags.imageField,
    'text field': flags.textField,
    'id field': flags.idField,
    'image root': flags.imageRoot,
  };
  for (const [name, value] of Object.entries(optional)) {
    if (value !== undefined) settings[name] = value;
  }
  if (flags.imageAs !== 'path') settings['image strings'] = flags.imageAs;
  return settings;
}
