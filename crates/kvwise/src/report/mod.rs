//! Plain structs of every answer, rendered as table, JSON, CSV, Markdown or HTML.
