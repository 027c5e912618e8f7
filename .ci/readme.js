'use strict';
// The shell commands of a Markdown file as a script, so that what it tells people is run. The fenced
// blocks marked `sh` are taken as they stand. A comment on the line before a block changes that:
//   <!-- ci: skip -->            leaves the block out
//   <!-- ci: some command -->    runs that command instead, for a job that takes long

const fs = require('node:fs');

const text = fs.readFileSync(process.argv[2] ?? 'README.md', 'utf8');
const pattern = /(?:<!-- ci: (?<instead>.+?) -->\n+)?^```sh\n(?<body>[\s\S]*?)^```$/gm;
for (const { groups } of text.matchAll(pattern)) {
  if (groups.instead === 'skip') continue;
  process.stdout.write(groups.instead === undefined ? groups.body : `${groups.instead}\n`);
}
