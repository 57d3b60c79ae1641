"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
drawCharts(data);
sortableTables();
if (data.solutions.items.length) startViewer(data);
